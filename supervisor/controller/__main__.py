"""The controller process: `python -m mmsup.supervisor.controller control=FD lifeline=FD listen:control=FD page=FD`.

One thread, one event loop. An unhandled error ends the process with its trace in the log; the keeper then starts
another one, which takes over, and no request fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import sys
import time
from typing import Any, Final

from mmsup.ipc import exit_codes, failpoints
from mmsup.ipc.inspection import forbid_inspection
from mmsup.ipc.memory import garbage
from mmsup.ipc.memory.status_page import Activity, StatusPageWriter
from mmsup.ipc.stray_signals import ignore_stray_signals
from mmsup.ipc.transport.control_channel import ControlChannel
from mmsup.ipc.transport.inherited_fds import parse_inherited_fds
from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.controller.children import ChildRouter
from mmsup.supervisor.controller.controller import Controller
from mmsup.supervisor.controller.event_console import LibraryLogHandler
from mmsup.supervisor.linux import cgroup_backend
from mmsup.supervisor.observability.console import Console
from mmsup.supervisor.processes.keeper_channel import KeeperChannel

EXIT_INTERNAL_ERROR: Final = 1
STATUS_PAGE_INTERVAL_S: Final = 0.5
NO_ROOM_ERRNOS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""Of accept(), as asyncio knows them."""


async def serve(inherited: dict[str, int]) -> None:
    failpoints.arm(inherited, "brain")
    asyncio.get_running_loop().set_exception_handler(_exit_on_unhandled_error)
    page = StatusPageWriter(inherited["page"])
    router = ChildRouter()
    channel = ControlChannel.from_fd(inherited["control"])
    keeper = KeeperChannel(channel, inherited["lifeline"], router.on_message)
    inventory, checkpoint = await router.receive_inventory()
    settings = Settings.from_json(inventory.settings)
    console = Console(settings.logging)
    logging.getLogger().addHandler(LibraryLogHandler(console))
    ignore_stray_signals(lambda text: console.log("warning", "signal_ignored", text=text, process="controller"))
    # The one place that passes the environment on; processes/launch_spec.py takes an allow-list of it.
    cgroups = cgroup_backend.backend(cgroup_backend.top_name(settings.state_dir))
    controller = Controller(inventory, checkpoint, keeper, os.environ, console, cgroups)
    await controller.start(router, socket.socket(fileno=inherited["listen:control"]))
    garbage.freeze()
    page.set_activity(Activity.IDLE, time.monotonic_ns())
    finished = controller.context.finished
    while not finished.is_set():
        page.heartbeat(time.monotonic_ns())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STATUS_PAGE_INTERVAL_S):
                await finished.wait()
    await controller.close()
    keeper.close()


def _exit_on_unhandled_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:  # asyncio's own
    """A callback or task has failed with an unexpected error: the state of this process can be wrong from now on.

    A listener that finds no descriptor for a new connection is none of them: asyncio tries again after a second.
    """
    loop.default_exception_handler(context)
    error = context.get("exception")
    if "socket" in context and isinstance(error, OSError) and error.errno in NO_ROOM_ERRNOS:
        return
    os._exit(EXIT_INTERNAL_ERROR)


def main(arguments: list[str]) -> int:
    forbid_inspection(os.environ)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(parse_inherited_fds(arguments)))
    return exit_codes.SUCCESS


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
