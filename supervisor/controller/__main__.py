"""The brain's process: `python -m mmsup.supervisor.controller control=FD lifeline=FD listen:control=FD page=FD`.

One thread, one loop. Its first message from the keeper is the Inventory; then brain.py has the word. A fault of our
own ends the process with its trace in the log: the keeper starts another, which takes over, and nobody is cut off.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import socket
import sys
import time
from typing import Any, Final

from mmsup.ipc import exit_codes, failpoints
from mmsup.ipc.memory.status_page import Activity, StatusPageWriter
from mmsup.ipc.messages.keeper_control import KeeperInventory
from mmsup.ipc.transport.control_channel import ControlChannel
from mmsup.ipc.transport.inherited_fds import parse_inherited_fds
from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.controller.controller import Controller
from mmsup.supervisor.controller.event_console import LibraryLogHandler
from mmsup.supervisor.linux import cgroup_backend
from mmsup.supervisor.observability.console import Console
from mmsup.supervisor.processes.keeper_channel import KeeperChannel

EXIT_INTERNAL_ERROR: Final = 1
STATUS_PAGE_INTERVAL_S: Final = 0.5


class _Reception:
    """Hears the keeper until there is a brain, and then hands on."""

    def __init__(self) -> None:
        self.brain: Controller | None = None
        self.inventory: asyncio.Future[KeeperInventory] = asyncio.get_running_loop().create_future()
        self._early: list[tuple[Any, list[int]]] = []  # messages of FROM_KEEPER

    def hear(self, message: Any, given: list[int]) -> None:  # one of FROM_KEEPER
        if self.brain is not None:
            self.brain.on_keeper_message(message, given)
        elif isinstance(message, KeeperInventory):
            self.inventory.set_result(message)
        else:
            self._early.append((message, given))

    def introduce(self, brain: Controller) -> None:
        """Hand on what has come meanwhile, in its order."""
        self.brain = brain
        for message, given in self._early:
            brain.on_keeper_message(message, given)
        self._early.clear()


async def serve(inherited: dict[str, int]) -> None:
    """From the first word of the keeper to the last one to it."""
    failpoints.arm(inherited, "brain")
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_exit_on_unhandled_error)
    page = StatusPageWriter(inherited["page"])
    reception = _Reception()
    parent = KeeperChannel(ControlChannel.from_fd(inherited["control"]), inherited["lifeline"], reception.hear)
    inventory = await reception.inventory
    settings = Settings.from_json(inventory.settings)
    console = Console(settings.log_format)
    logging.getLogger().addHandler(LibraryLogHandler(console))
    # The one place that hands the environment on, and spawning.py takes an allow-list of it.
    cgroups = cgroup_backend.backend(cgroup_backend.top_name(settings.state_dir))
    brain = Controller(inventory, parent, os.environ, console, cgroups)
    await brain.start(socket.socket(fileno=inherited["listen:control"]))
    reception.introduce(brain)
    gc.collect()
    gc.freeze()
    page.set_activity(Activity.IDLE, time.monotonic_ns())
    while not brain.finished.is_set():
        page.heartbeat(time.monotonic_ns())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STATUS_PAGE_INTERVAL_S):
                await brain.finished.wait()
    await brain.close()
    parent.close()


def _exit_on_unhandled_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:  # asyncio's own
    """A callback or task failed in a way that nobody foresaw: what is known here may be wrong from now on."""
    loop.default_exception_handler(context)
    os._exit(EXIT_INTERNAL_ERROR)


def main(arguments: list[str]) -> int:
    """Run one brain."""
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(parse_inherited_fds(arguments)))
    return exit_codes.SUCCESS


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
