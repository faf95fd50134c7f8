"""`python -m mmsup.gateway`: one gateway process, from its inherited descriptors to its end.

    argv   lifeline=FD control=FD page=FD crash=FD listen:NAME=FD … tally:N=FD …

Order: faulthandler, Configure from the brain, then the loop: control channel, listeners, the page's beat.
A spare waits for Configure as long as it takes, and the page says so; nothing before it needs more than imports.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import select
import signal
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import uvloop

from mmsup.gateway.controller_channel import ControllerClient, exit_parent_lost
from mmsup.gateway.dispatch.router import Router
from mmsup.gateway.gc_schedule import OLDEST_GENERATION_THRESHOLD, GcSchedule
from mmsup.gateway.server import GatewayServer
from mmsup.ipc import exit_codes
from mmsup.ipc.failpoints import arm, failpoint
from mmsup.ipc.memory.counters import CounterTable
from mmsup.ipc.memory.status_page import Activity, StatusPageWriter
from mmsup.ipc.messages.gateway_control import ConfigureGateway
from mmsup.ipc.messages.handshake import WIRE_VERSION
from mmsup.ipc.transport.codec import decode
from mmsup.ipc.transport.control_channel import ChannelClosed, ControlChannel
from mmsup.ipc.transport.inherited_fds import parse_inherited_fds
from mmsup.ipc.transport.zeromq_channel import ZmqContext

HEARTBEAT_S: Final = 0.1
STANDBY_HEARTBEAT_S: Final = 0.5
SWITCH_INTERVAL_S: Final = 0.001
"""How long the thread that reads documents keeps the loop waiting between two steps; five times that by default."""
SHUTDOWN_S: Final = 2.0
"""Drained connections are idle; this is how long one that is not may hold up the end."""


def wait_for_configure(channel: ControlChannel, lifeline: int, page: StatusPageWriter) -> ConfigureGateway:
    """Wait for the brain's first word."""
    page.set_activity(Activity.STANDBY, time.monotonic_ns())
    poller = select.poll()
    poller.register(lifeline, select.POLLIN)
    poller.register(channel.fileno(), select.POLLIN)
    while True:
        page.heartbeat(time.monotonic_ns())
        if any(fd == lifeline for fd, _ in poller.poll(STANDBY_HEARTBEAT_S * 1e3)):
            exit_parent_lost()
        try:
            received = channel.receive()
        except ChannelClosed:
            exit_parent_lost()
        if received is None:
            continue
        configure = decode(received[0], (ConfigureGateway,))
        assert isinstance(configure, ConfigureGateway)
        page.set_activity(Activity.STARTING, time.monotonic_ns())
        assert configure.wire_version == WIRE_VERSION, (
            f"the brain speaks wire {configure.wire_version}, this gateway {WIRE_VERSION}"
        )
        return configure


async def serve(
    inherited: dict[str, int], page: StatusPageWriter, channel: ControlChannel, configure: ConfigureGateway
) -> None:
    """Everything between the first word of the brain and SIGTERM, or a retirement that is over."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_reader(inherited["lifeline"], exit_parent_lost)
    hub = ZmqContext()
    # The one other thread of a gateway: it makes extents, which is too slow for the loop.
    with ThreadPoolExecutor(1, "extents") as executor:
        backend = Router(configure, executor)
        failpoint("gateway.configured")
        control = ControllerClient(channel, configure, backend, hub)
        front = GatewayServer(backend, counter_tables(inherited), configure.seat)
        await front.start(configure.front)
        # Whoever comes before would be told that there is no such model; in the listener's queue he can wait.
        await wait_for_any(control.synced, stop)
        for name, fd in inherited.items():
            if name.startswith("listen:"):
                await front.listen(socket.socket(fileno=fd), metrics_only=name == "listen:metrics")
        failpoint("gateway.listening")
        gc.collect()
        gc.freeze()
        gc.set_threshold(*gc.get_threshold()[:2], OLDEST_GENERATION_THRESHOLD)
        await run_until_stopped(page, control, front, stop)
        failpoint("gateway.left")
        await front.close(SHUTDOWN_S)
        for link in list(backend.links.values()):
            link.close()
        await backend.poison_requests.close()
        await control.close()
    hub.close()


async def wait_for_any(*events: asyncio.Event) -> None:
    """Until one of them is set."""
    waits = [asyncio.ensure_future(each.wait()) for each in events]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for each in waits:
        each.cancel()


async def run_until_stopped(
    page: StatusPageWriter, control: ControllerClient, front: GatewayServer, stop: asyncio.Event
) -> None:
    """The beat, from the loop that does the work, and what the backend looks after at every beat."""
    page.set_activity(Activity.IDLE, time.monotonic_ns())
    garbage = GcSchedule()
    while not stop.is_set() and not front.is_finished:
        page.heartbeat(time.monotonic_ns())
        control.report_overdue(time.monotonic())
        front.on_heartbeat()
        if garbage.is_due(front.open_requests, gc.get_count()[2]):
            gc.collect()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HEARTBEAT_S):
                await stop.wait()
    page.set_activity(Activity.STOPPING, time.monotonic_ns())


def counter_tables(inherited: dict[str, int]) -> list[CounterTable]:
    """The counters of all gateway places, in the order of places."""
    places = sorted(int(name.removeprefix("tally:")) for name in inherited if name.startswith("tally:"))
    return [CounterTable(inherited[f"tally:{place}"]) for place in places]


def main(arguments: list[str]) -> int:
    """Run one gateway."""
    inherited = parse_inherited_fds(arguments)
    faulthandler.enable(inherited["crash"], all_threads=False)
    arm(inherited, "gateway")
    channel = ControlChannel.from_fd(inherited["control"])
    page = StatusPageWriter(inherited["page"])
    gc.collect()  # what imports leave, before anybody waits for us: 27 ms
    gc.freeze()
    configure = wait_for_configure(channel, inherited["lifeline"], page)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    uvloop.run(serve(inherited, page, channel, configure))
    return exit_codes.SUCCESS


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
