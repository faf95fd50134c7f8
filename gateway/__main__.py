"""`python -m mmsup.gateway`: one gateway process, from its inherited descriptors to its exit.

    argv   lifeline=FD control=FD page=FD crash=FD listen:NAME=FD ... tally:N=FD ...

It enables faulthandler, waits for ConfigureGateway from the controller, and then runs the event loop: control channel,
listeners, heartbeats on the status page. A standby gateway waits for ConfigureGateway as long as it takes, which its
status page shows; nothing before that costs more than imports.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import os
import select
import signal
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import uvloop

from mmsup.gateway.client_memory.region_table import make_region_table
from mmsup.gateway.composition.ensemble_router import EnsembleRouter
from mmsup.gateway.controller_channel import ControllerClient, check_wire_version, exit_parent_lost
from mmsup.gateway.dispatch.router import Router
from mmsup.gateway.gc_schedule import OLDEST_GENERATION_THRESHOLD, GcSchedule
from mmsup.gateway.heap_schedule import HeapSchedule
from mmsup.gateway.rpc import rpc_self_test
from mmsup.gateway.server import GatewayServer
from mmsup.ipc import exit_codes
from mmsup.ipc.failpoints import arm, failpoint
from mmsup.ipc.inspection import forbid_inspection
from mmsup.ipc.memory import garbage
from mmsup.ipc.memory.counters import CounterTable
from mmsup.ipc.memory.heap import private_bytes, trim_heap
from mmsup.ipc.memory.status_page import Activity, StatusPageWriter
from mmsup.ipc.messages.gateway_control import ConfigureGateway
from mmsup.ipc.stray_signals import ignore_stray_signals
from mmsup.ipc.transport.codec import decode
from mmsup.ipc.transport.control_channel import ChannelClosed, ControlChannel
from mmsup.ipc.transport.inherited_fds import parse_inherited_fds
from mmsup.ipc.transport.zeromq_channel import ZmqContext

HEARTBEAT_S: Final = 0.1
STANDBY_HEARTBEAT_S: Final = 0.5
SWITCH_INTERVAL_S: Final = 0.001
"""How long the parser thread may keep the interpreter lock while the event loop waits; Python's default is 5 ms."""
SHUTDOWN_S: Final = 2.0
"""Drained connections are idle; this is how long one that is not may delay the exit."""


def wait_for_configure(channel: ControlChannel, lifeline: int, page: StatusPageWriter) -> ConfigureGateway:
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
        check_wire_version(configure)
        return configure


async def serve(
    inherited: dict[str, int], page: StatusPageWriter, channel: ControlChannel, configure: ConfigureGateway
) -> None:
    """Serve until SIGTERM, or until this gateway is retired and its last connection is closed."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_reader(inherited["lifeline"], exit_parent_lost)
    zeromq = ZmqContext()
    # The only other thread beside the parser: making extents is too slow for the event loop.
    with ThreadPoolExecutor(1, "extents") as executor:
        router = EnsembleRouter(configure, executor)
        failpoint("gateway.configured")
        regions = make_region_table(configure)
        controller = ControllerClient(channel, configure, router, zeromq, regions)
        server = GatewayServer(router, controller.calls.call, counter_tables(inherited), configure.seat, regions)
        await server.start(configure.front)
        serves_rpc = configure.grpc_front == "own"
        fault = await rpc_self_test.run_self_test(router) if serves_rpc else ""
        gc.collect()  # what the self-tests leave holds descriptors
        if fault:
            controller.report_rpc_fault(fault)
            serves_rpc = not configure.can_relay  # else what is left of it serves
        # A client that connected before would get `unknown_model`; in the queue of the listening socket it can wait.
        await wait_for_any(controller.synced, stop)
        for name, fd in inherited.items():
            if name in ("listen:grpc", "listen:grpc_unix"):
                if serves_rpc:
                    await server.listen_rpc(socket.socket(fileno=fd))
            elif name == "listen:relay":
                await server.listen_relay(socket.socket(fileno=fd))
            elif name.startswith("listen:"):
                await server.listen(socket.socket(fileno=fd), metrics_only=name == "listen:metrics")
        failpoint("gateway.listening")
        garbage.freeze()
        gc.set_threshold(*gc.get_threshold()[:2], OLDEST_GENERATION_THRESHOLD)
        await run_until_stopped(page, controller, router, server, stop)
        failpoint("gateway.left")
        await server.close(SHUTDOWN_S)
        router.links.close_all()
        await router.poison_requests.close()
        await controller.close()
    zeromq.close()


async def wait_for_any(*events: asyncio.Event) -> None:
    waits = [asyncio.ensure_future(each.wait()) for each in events]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for each in waits:
        each.cancel()


async def run_until_stopped(
    page: StatusPageWriter,
    controller: ControllerClient,
    router: Router,
    server: GatewayServer,
    stop: asyncio.Event,
) -> None:
    """Write heartbeats from the event loop that does the work, and do the periodic work."""
    page.set_activity(Activity.IDLE, time.monotonic_ns())
    gc_schedule, heap_schedule = GcSchedule(), HeapSchedule()
    while not stop.is_set() and not server.is_finished:
        page.heartbeat(time.monotonic_ns())
        controller.report_overdue(time.monotonic())
        server.on_heartbeat()
        if gc_schedule.is_due(router.admission.open_requests, gc.get_count()[2]):
            gc.collect()
        if heap_schedule.is_due(router.admission.open_requests, private_bytes):
            trim_heap()
            heap_schedule.on_returned(private_bytes())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HEARTBEAT_S):
                await stop.wait()
    page.set_activity(Activity.STOPPING, time.monotonic_ns())


def counter_tables(inherited: dict[str, int]) -> list[CounterTable]:
    """The counters of all gateway seats, in the order of seats."""
    seats = sorted(int(name.removeprefix("tally:")) for name in inherited if name.startswith("tally:"))
    return [CounterTable(inherited[f"tally:{seat}"]) for seat in seats]


def _print_line(text: str) -> None:
    """From a signal handler: one write, which no buffer of a stream can be in the middle of."""
    os.write(2, f"gateway: {text}\n".encode())


def main(arguments: list[str]) -> int:
    forbid_inspection(os.environ)
    inherited = parse_inherited_fds(arguments)
    faulthandler.enable(inherited["crash"], all_threads=False)
    ignore_stray_signals(_print_line)
    arm(inherited, "gateway")
    channel = ControlChannel.from_fd(inherited["control"])
    page = StatusPageWriter(inherited["page"])
    garbage.freeze()  # what imports leave behind, before a client waits: 27 ms
    configure = wait_for_configure(channel, inherited["lifeline"], page)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    uvloop.run(serve(inherited, page, channel, configure))
    return exit_codes.SUCCESS


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
