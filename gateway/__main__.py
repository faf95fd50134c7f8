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

from mmsup.gateway.controller_channel import Control, orphaned
from mmsup.gateway.dispatch.router import Backend
from mmsup.gateway.gc_schedule import OLDEST_THRESHOLD, Garbage
from mmsup.gateway.server import Front
from mmsup.ipc import exit_codes
from mmsup.ipc.failpoints import arm, faultpoint
from mmsup.ipc.memory.counters import Tally
from mmsup.ipc.memory.status_page import Activity, PageWriter
from mmsup.ipc.messages.gateway_control import Configure
from mmsup.ipc.messages.handshake import WIRE_VERSION
from mmsup.ipc.transport.codec import decode
from mmsup.ipc.transport.control_channel import Closed, Seqpacket
from mmsup.ipc.transport.inherited_fds import descriptors
from mmsup.ipc.transport.zeromq_channel import Hub

BEAT_S: Final = 0.1
STANDBY_BEAT_S: Final = 0.5
SWITCH_S: Final = 0.001
"""How long the thread that reads documents keeps the loop waiting between two steps; five times that by default."""
SHUTDOWN_S: Final = 2.0
"""Drained connections are idle; this is how long one that is not may hold up the end."""


def configured(channel: Seqpacket, lifeline: int, page: PageWriter) -> Configure:
    """Wait for the brain's first word."""
    page.enter(Activity.STANDBY, time.monotonic_ns())
    poller = select.poll()
    poller.register(lifeline, select.POLLIN)
    poller.register(channel.fileno(), select.POLLIN)
    while True:
        page.turn(time.monotonic_ns())
        if any(fd == lifeline for fd, _ in poller.poll(STANDBY_BEAT_S * 1e3)):
            orphaned()
        try:
            received = channel.receive()
        except Closed:
            orphaned()
        if received is None:
            continue
        configure = decode(received[0], (Configure,))
        assert isinstance(configure, Configure)
        page.enter(Activity.STARTING, time.monotonic_ns())
        assert configure.wire == WIRE_VERSION, f"the brain speaks wire {configure.wire}, this gateway {WIRE_VERSION}"
        return configure


async def serve(inherited: dict[str, int], page: PageWriter, channel: Seqpacket, configure: Configure) -> None:
    """Everything between the first word of the brain and SIGTERM, or a retirement that is over."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_reader(inherited["lifeline"], orphaned)
    hub = Hub()
    # The one other thread of a gateway: it makes extents, which is too slow for the loop.
    with ThreadPoolExecutor(1, "extents") as executor:
        backend = Backend(configure, executor)
        faultpoint("gateway.configured")
        control = Control(channel, configure, backend, hub)
        front = Front(backend, tallies(inherited), configure.gateway)
        await front.start(configure.front)
        # Whoever comes before would be told that there is no such model; in the listener's queue he can wait.
        await either(control.synced, stop)
        for name, fd in inherited.items():
            if name.startswith("listen:"):
                await front.listen(socket.socket(fileno=fd), metrics_only=name == "listen:metrics")
        faultpoint("gateway.listening")
        gc.collect()
        gc.freeze()
        gc.set_threshold(*gc.get_threshold()[:2], OLDEST_THRESHOLD)
        await turn(page, control, front, stop)
        faultpoint("gateway.left")
        await front.close(SHUTDOWN_S)
        for link in list(backend.links.values()):
            link.finish()
        await backend.lists.close()
        await control.close()
    hub.close()


async def either(*events: asyncio.Event) -> None:
    """Until one of them is set."""
    waits = [asyncio.ensure_future(each.wait()) for each in events]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for each in waits:
        each.cancel()


async def turn(page: PageWriter, control: Control, front: Front, stop: asyncio.Event) -> None:
    """The beat, from the loop that does the work, and what the backend looks after at every beat."""
    page.enter(Activity.IDLE, time.monotonic_ns())
    garbage = Garbage()
    while not stop.is_set() and not front.is_over:
        page.turn(time.monotonic_ns())
        control.report_overdue(time.monotonic())
        front.turn()
        if garbage.is_due(front.open_requests, gc.get_count()[2]):
            gc.collect()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(BEAT_S):
                await stop.wait()
    page.enter(Activity.STOPPING, time.monotonic_ns())


def tallies(inherited: dict[str, int]) -> list[Tally]:
    """The counters of all gateway places, in the order of places."""
    places = sorted(int(name.removeprefix("tally:")) for name in inherited if name.startswith("tally:"))
    return [Tally(inherited[f"tally:{place}"]) for place in places]


def main(arguments: list[str]) -> int:
    """Run one gateway."""
    inherited = descriptors(arguments)
    faulthandler.enable(inherited["crash"], all_threads=False)
    arm(inherited, "gateway")
    channel = Seqpacket.of_descriptor(inherited["control"])
    page = PageWriter(inherited["page"])
    gc.collect()  # what imports leave, before anybody waits for us: 27 ms
    gc.freeze()
    configure = configured(channel, inherited["lifeline"], page)
    sys.setswitchinterval(SWITCH_S)
    uvloop.run(serve(inherited, page, channel, configure))
    return exit_codes.DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
