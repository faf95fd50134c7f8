"""Tests at every start whether the gateway's own gRPC front works: a real exchange over HTTP/2 on a socket pair.

Two calls: the health of the server, which has a reply and trailers, and an inference of a model that does not exist,
which has an error. Their headers are compressed, as clients send them. Nothing is counted in the server's statistics.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from mmsup.gateway.dispatch.router import Router
from mmsup.gateway.http2 import frames
from mmsup.gateway.http2.header_blocks import HeaderBlocks
from mmsup.gateway.infer.handler import InferHandler
from mmsup.gateway.observability.request_counters import RequestCounters
from mmsup.gateway.rpc.calls import message_framing, status
from mmsup.gateway.rpc.calls.messages import message_class
from mmsup.gateway.rpc.listener import RpcListener
from mmsup.gateway.rpc.server import RpcServer
from mmsup.ipc.memory.counters import CounterTable, make_counter_table

TEST_LIMIT_S: Final = 5.0
CLOSE_LIMIT_S: Final = 0.1
_HEALTH: Final = bytes.fromhex(
    "83864495626b2b22f394742675fb857c651d099d8bd3949d7f4082497f864d833505b11f5f8b1d75d0620d263d4c4d6564"
)
_INFER: Final = bytes.fromhex(
    "8386449f60d54a5b0b510abe2dbaef64aa52d85a885dc5b3b98856341e42d192a94b674082497f86"
    "4d833505b11f5f8b1d75d0620d263d4c4d6564"
)
_PING: Final = b"selftest"
_MODEL: Final = "selftest"


async def run_self_test(router: Router) -> str:
    """Why the gateway's own gRPC front cannot be used, or an empty text."""
    table = make_counter_table()
    try:
        with ThreadPoolExecutor(1) as executor:
            handler = InferHandler(router, RequestCounters([CounterTable(table)], 0), executor)
            listener = RpcListener(RpcServer(handler, _no_controller), is_local=True)
            try:
                async with asyncio.timeout(TEST_LIMIT_S):
                    await _exchange(listener)
            finally:
                listener.pre_shutdown()
                await listener.shutdown(CLOSE_LIMIT_S)
    except TimeoutError:
        return f"the self-test of the gRPC front did not end within {TEST_LIMIT_S:.0f} s"
    except Exception as error:  # noqa: BLE001 - whatever it is, another front serves
        return f"the self-test of the gRPC front failed: {type(error).__name__}: {error}"
    finally:
        os.close(table)
    return ""


async def _no_controller(command: str, arguments: dict[str, Any]) -> Any:  # JSON, by command
    raise AssertionError(f"the self-test sends no command to the controller, not {command} {arguments}")


async def _exchange(listener: Callable[[], asyncio.BaseProtocol]) -> None:
    near, far = socket.socketpair()
    await asyncio.get_running_loop().connect_accepted_socket(listener, near)
    reader, writer = await asyncio.open_connection(sock=far)
    try:
        writer.write(frames.PREFACE + frames.settings({}) + frames.ping(_PING))
        health = message_class("grpc.health.v1.HealthCheckRequest")()
        writer.write(_call(1, _HEALTH, health.SerializeToString()))
        body, trailers = await _response(reader, 1)
        reply = message_class("grpc.health.v1.HealthCheckResponse").FromString(body[message_framing.PREFIX_BYTES :])
        assert reply.status, "the health of the server came without a status"
        assert trailers[b"grpc-status"] == b"0", f"the health of the server ended with {trailers}"
        infer = message_class("inference.ModelInferRequest")(model_name=_MODEL)
        writer.write(_call(3, _INFER, infer.SerializeToString()))
        body, trailers = await _response(reader, 3)
        assert not body, "an error came with a reply"
        assert trailers[b"grpc-status"] == b"%d" % status.NOT_FOUND, f"an unknown model ended with {trailers}"
    finally:
        writer.close()
        await writer.wait_closed()


def _call(stream: int, block: bytes, message: bytes) -> bytes:
    body = message_framing.prefix(len(message)) + message
    return b"".join(
        (
            frames.head(len(block), frames.HEADERS, frames.END_HEADERS, stream) + block,
            frames.head(len(body), frames.DATA, frames.END_STREAM, stream) + body,
        )
    )


async def _response(reader: asyncio.StreamReader, stream: int) -> tuple[bytes, dict[bytes, bytes]]:
    """The body and the trailers of a stream."""
    body, blocks = b"", HeaderBlocks()
    while True:
        head = await reader.readexactly(frames.HEAD_BYTES)
        size, kind, flags, number = frames.read_head(head, 0)
        payload = await reader.readexactly(size)
        assert kind != frames.GOAWAY, f"the connection was ended: {payload[8:].decode('latin-1')}"
        if kind == frames.PING:
            assert payload == _PING, "another ping was answered"
        if number != stream:
            continue
        assert kind != frames.RST_STREAM, "a sound call was reset"
        if kind == frames.DATA:
            body += payload
        elif kind == frames.HEADERS and flags & frames.END_STREAM:
            return body, dict(blocks.decode(payload))
        elif kind == frames.HEADERS:
            assert (b":status", b"200") in blocks.decode(payload), "the response has no status of HTTP"
