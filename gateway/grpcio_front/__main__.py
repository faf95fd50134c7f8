"""`python -m mmsup.gateway.grpcio_front`: the gRPC front process, from its inherited descriptors to its exit.

    argv   OPTIONS lifeline=FD control=FD page=FD crash=FD listen:NAME=FD ...

OPTIONS is an RpcFrontOptions in JSON. The process has no state but its connections: whatever befalls it, another one
follows, and gateways and HTTP do not notice.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import ipaddress
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any, Final, NoReturn

import grpc.aio
import uvloop

from mmsup.gateway.grpcio_front.call_service import CallService
from mmsup.gateway.grpcio_front.relay_link import RelayLinks
from mmsup.gateway.grpcio_front.splice import Splice
from mmsup.ipc import exit_codes
from mmsup.ipc.inspection import forbid_inspection
from mmsup.ipc.memory.status_page import Activity, StatusPageWriter
from mmsup.ipc.rpc.front_options import RpcFrontOptions
from mmsup.ipc.stray_signals import ignore_stray_signals
from mmsup.ipc.transport.dataclass_codec import record_decoder
from mmsup.ipc.transport.inherited_fds import parse_inherited_fds

HEARTBEAT_S: Final = 0.1
STOP_S: Final = 2.0
"""What open calls have at a stop; the gateways have been drained by then."""
METADATA_BYTES: Final = 1 << 14
STREAMS_LIMIT: Final = 1000
LISTENERS: Final = ("listen:grpc", "listen:grpc_unix")


def server_options(options: RpcFrontOptions) -> list[tuple[str, int]]:
    """Of grpcio: limits as the gateways' own front has them, and the flags of the same names."""
    kept = options.keepalive
    made = [
        # Beyond the limit, so that it is the gateway that refuses, with its text.
        ("grpc.max_receive_message_length", min(2 * options.max_message_bytes, (1 << 31) - 1)),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", METADATA_BYTES),
        ("grpc.max_concurrent_streams", STREAMS_LIMIT),
        ("grpc.keepalive_time_ms", kept.time_ms or (1 << 31) - 1),
        ("grpc.keepalive_timeout_ms", kept.timeout_ms),
        ("grpc.keepalive_permit_without_calls", int(kept.without_calls)),
        ("grpc.http2.max_pings_without_data", kept.max_pings_without_data),
    ]
    if kept.min_ping_interval_ms < 0:
        made.append(("grpc.http2.max_ping_strikes", 0))
    else:
        made.append(("grpc.http2.min_recv_ping_interval_without_data_ms", kept.min_ping_interval_ms))
        made.append(("grpc.http2.max_ping_strikes", kept.max_ping_strikes))
    if kept.max_age_ms:
        made.append(("grpc.max_connection_age_ms", kept.max_age_ms))
    if kept.max_age_grace_ms:
        made.append(("grpc.max_connection_age_grace_ms", kept.max_age_grace_ms))
    return made


class Front:
    """One grpcio server behind one listener."""

    def __init__(self, name: str, sock: socket.socket, links: RelayLinks, options: RpcFrontOptions) -> None:
        path = str(Path(options.folder) / f"rpc_front.{name}.sock")
        self._sock = sock
        self._server: Any = grpc.aio.server(options=server_options(options))  # the library has no types
        self._server.add_generic_rpc_handlers((CallService(links, is_local=is_local(sock)),))
        self._server.add_insecure_port(f"unix:{path}")
        self._splice = Splice(path)

    async def start(self) -> None:
        await self._server.start()
        await self._splice.listen(self._sock)

    async def stop(self) -> None:
        self._splice.close()
        await self._server.stop(STOP_S)


def is_local(sock: socket.socket) -> bool:
    """Whether only this machine can reach a listening socket."""
    if sock.family == socket.AF_UNIX:
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(sock.getsockname()[0]).is_loopback
    return False


async def serve(inherited: dict[str, int], page: StatusPageWriter, options: RpcFrontOptions) -> None:
    """Serve until SIGTERM."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_reader(inherited["lifeline"], exit_parent_lost)
    links = RelayLinks(options.socket, options.gateways)
    sockets = {name: socket.socket(fileno=inherited[name]) for name in LISTENERS if name in inherited}
    fronts = [Front(name.removeprefix("listen:"), sock, links, options) for name, sock in sockets.items()]
    for front in fronts:
        await front.start()
    page.set_activity(Activity.IDLE, time.monotonic_ns())
    while not stop.is_set():
        page.heartbeat(time.monotonic_ns())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HEARTBEAT_S):
                await stop.wait()
    page.set_activity(Activity.STOPPING, time.monotonic_ns())
    await asyncio.gather(*[front.stop() for front in fronts])
    links.close()


def exit_parent_lost() -> NoReturn:
    os._exit(exit_codes.KEEPER_LOST)


def _print_line(text: str) -> None:
    """From a signal handler: one write, which no buffer of a stream can be in the middle of."""
    os.write(2, f"grpc front: {text}\n".encode())


def main(arguments: list[str]) -> int:
    forbid_inspection(os.environ)
    options = record_decoder(RpcFrontOptions)(json.loads(arguments[0]))
    inherited = parse_inherited_fds(arguments[1:])
    faulthandler.enable(inherited["crash"], all_threads=False)
    ignore_stray_signals(_print_line)
    page = StatusPageWriter(inherited["page"])
    page.set_activity(Activity.STARTING, time.monotonic_ns())
    uvloop.run(serve(inherited, page, options))
    return exit_codes.SUCCESS


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
