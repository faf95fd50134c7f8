"""A gRPC server with a fake router behind it, and a client's connection to it, both without a socket."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from hpack import Decoder

from fake_router import FakeRouter, metadata
from fake_transport import FakeTransport, quiet
from http2_client import START, data, frames_of, headers
from mmsup.gateway.http2 import frames
from mmsup.gateway.infer.handler import InferHandler
from mmsup.gateway.observability.request_counters import RequestCounters
from mmsup.gateway.rpc.calls.messages import INFERENCE, message_class, methods
from mmsup.gateway.rpc.listener import RpcListener
from mmsup.gateway.rpc.server import RpcServer
from mmsup.ipc.memory.counters import CounterTable, make_counter_table
from mmsup.ipc.rpc.header_literals import Headers, block_of

Message = Any  # of protobuf


@dataclass
class Call:
    """One call, and what has come back so far."""

    number: int
    first: Headers = field(default_factory=list)
    trailers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    granted: int = 0
    reset: int | None = None
    is_over: bool = False

    @property
    def code(self) -> int:
        assert self.is_over, "the call has not ended"
        return int(self.trailers["grpc-status"])

    @property
    def text(self) -> str:
        return unquote(self.trailers.get("grpc-message", ""))

    def messages(self) -> list[bytes]:
        found, at = [], 0
        while at < len(self.body):
            assert self.body[at] == 0
            size = int.from_bytes(self.body[at + 1 : at + 5], "big")
            found.append(bytes(self.body[at + 5 : at + 5 + size]))
            at += 5 + size
        return found


def framed(message: bytes, flag: int = 0) -> bytes:
    return bytes((flag,)) + len(message).to_bytes(4, "big") + message


class RpcSession:
    def __init__(self, router: FakeRouter, *, is_local: bool = True) -> None:
        self.router = router
        self._table_fd = make_counter_table()
        self.counters = RequestCounters([CounterTable(self._table_fd)], 0)
        handler = InferHandler(router, self.counters, router.threads, router.regions)
        self.server = RpcServer(handler, router.call_controller)
        self.listener = RpcListener(self.server, is_local=is_local)
        self.calls: dict[int, Call] = {}
        self._decoder = Decoder()
        self.pipe = FakeTransport(self.listener())
        self.pipe.send(START)
        self._next = 1

    async def open(self, method: str, more: Headers = [], *, end: bool = False) -> Call:  # noqa: B006 - not changed
        """Begin a call; `method` with its service, or of the inference service."""
        path = method if "/" in method else f"{INFERENCE}/{method}"
        given = [
            *((b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/" + path.encode())),
            *((b"te", b"trailers"), (b"content-type", b"application/grpc")),
        ]
        made = self.calls[self._next] = Call(self._next)
        self._next += 2
        await self.send(headers(made.number, block_of([*given, *more]), end=end))
        return made

    async def send(self, *given: bytes) -> None:
        for each in given:
            self.pipe.send(each)
        await self.settle()

    async def message(self, call: Call, message: bytes, flag: int = 0, *, end: bool = False) -> None:
        await self.send(data(call.number, framed(message, flag), end=end))

    async def settle(self) -> None:
        """Wait until nothing more happens, and take what was written."""
        await quiet(self.pipe)
        for each in frames_of(bytes(self.pipe.written)):
            call = self.calls.get(each.stream)
            if call is None:
                continue
            if each.kind == frames.DATA:
                call.body += each.payload
            elif each.kind == frames.WINDOW_UPDATE:
                call.granted += each.number
            elif each.kind == frames.RST_STREAM:
                call.reset = each.number
            elif each.kind == frames.HEADERS:
                found = [(bytes(name), bytes(value)) for name, value in self._decoder.decode(each.payload, raw=True)]
                if not call.first:
                    call.first = found
                if each.flags & frames.END_STREAM:
                    call.trailers = {name.decode(): value.decode() for name, value in found}
                    call.is_over = True
        self.pipe.written.clear()

    async def ended(self, call: Call) -> Call:
        """Wait until the call is over; work in other threads takes real time."""
        async with asyncio.timeout(20):
            while not call.is_over:
                await self.settle()
                await asyncio.sleep(0.001)
        return call

    async def unary(self, method: str, request: Message | bytes | None = None, more: Headers = []) -> Call:  # noqa: B006
        """A whole call of one message."""
        call = await self.open(method, more)
        if request is None:
            request = methods(INFERENCE)[method].request()
        await self.message(call, request if isinstance(request, bytes) else request.SerializeToString(), end=True)
        return await self.ended(call)

    def rows(self) -> set[tuple[str, str]]:
        """Models and versions that are counted."""
        return set(self.counters.totals())

    async def close(self) -> None:
        self.pipe.close()
        await quiet(self.pipe)
        os.close(self._table_fd)


def infer_request(values: Sequence[float] = (1.0, 2.5), **fields: Any) -> Message:
    """For the echo model `m`."""
    made = message_class("inference.ModelInferRequest")(model_name=fields.pop("model_name", "m"), **fields)
    made.inputs.add(name="X", datatype="FP32", shape=[len(values)]).contents.fp32_contents.extend(values)
    return made


def infer_reply(call: Call) -> Message:
    (found,) = call.messages()
    return message_class("inference.ModelInferResponse").FromString(found)


def make_router(max_body_bytes: int = 64 << 20) -> FakeRouter:
    router = FakeRouter(max_body_bytes)
    router.serve("m", metadata(("X", "FP32", (-1,))))
    return router


def run(
    test: Callable[[RpcSession], Awaitable[None]], make: Callable[[], FakeRouter] = make_router, **options: Any
) -> None:
    """Run a test; afterwards no request is open and no memory of a message is held."""

    async def main() -> None:
        session = RpcSession(make(), **options)
        try:
            await test(session)
        finally:
            await session.close()
        for _ in range(1000):
            if not session.router.unclosed_requests:
                break
            await asyncio.sleep(0.001)
        assert session.router.unclosed_requests == 0
        assert session.server._memory.budget.held_bytes == 0
        assert session.listener.is_empty
        session.router.threads.shutdown()

    asyncio.run(main())
