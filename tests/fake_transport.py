"""Two servers with one router, one with the fast path and one of aiohttp alone, driven without a socket.

Bytes go straight into the protocols, in pieces that the test chooses, and what these write is recorded. Nothing waits
for time: when nothing has happened for a number of loop iterations, nothing more will.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from fake_router import FakeRouter
from mmsup.gateway.api.app import HttpApp
from mmsup.gateway.connections.context import ConnectionContext
from mmsup.gateway.connections.listener import HttpListener
from mmsup.gateway.infer.handler import InferHandler
from mmsup.gateway.observability.request_counters import RequestCounters
from mmsup.ipc.memory.counters import CounterTable

QUIET_ITERATIONS = 12


@dataclass(frozen=True)
class Reply:
    """One response: status, headers except the date, body."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


@dataclass(frozen=True)
class Outcome:
    """All responses to some bytes."""

    replies: tuple[Reply, ...]
    closed: bool


class FakeTransport(asyncio.Transport):
    """A transport that records what is written."""

    def __init__(self, protocol: Any) -> None:  # a protocol of either kind
        super().__init__()
        self.loop = asyncio.get_running_loop()
        self.protocol = protocol
        self.written = bytearray()
        self.closing = self.lost = self.paused = False
        self.waiting: list[bytes] = []
        protocol.connection_made(self)

    def send(self, data: bytes) -> None:
        """Bytes from the client."""
        self.waiting.append(data)
        self._deliver()

    def _deliver(self) -> None:
        while self.waiting and not self.paused and not self.closing:
            data = self.waiting.pop(0)
            if not isinstance(self.protocol, asyncio.BufferedProtocol):
                self.protocol.data_received(data)
                continue
            buffer = memoryview(cast("memoryview", self.protocol.get_buffer(-1)))
            count = min(len(buffer), len(data))
            buffer[:count] = data[:count]
            if data[count:]:
                self.waiting.insert(0, data[count:])
            self.protocol.buffer_updated(count)

    def write(self, data: Any) -> None:
        assert not self.lost, "a closed connection is written to"
        if not self.closing:
            self.written += data

    def writelines(self, parts: Any) -> None:
        self.write(b"".join(parts))

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            self.loop.call_soon(self._lose)

    abort = close

    def _lose(self) -> None:
        self.lost = True
        self.protocol.connection_lost(None)

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        if self.paused:
            self.paused = False
            self.loop.call_soon(self._deliver)

    def is_closing(self) -> bool:
        return self.closing

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


def listener(router: FakeRouter, tally: CounterTable, *, fast: bool) -> HttpListener:
    """A listener that serves with this router."""
    core = InferHandler(router, RequestCounters([tally], 0), router.threads)
    shared = ConnectionContext(core, asyncio.get_running_loop()) if fast else None
    return HttpListener(HttpApp(core, router.call_controller).serve, is_local=True, context=shared)


async def outcome(to: Callable[[], Any], pieces: Sequence[bytes]) -> Outcome:
    """The responses to these bytes on a new connection; each piece is sent when the one before has no more effect."""
    pipe = FakeTransport(to())
    for piece in pieces:
        pipe.send(piece)
        await quiet(pipe)
    made = Outcome(replies(bytes(pipe.written)), pipe.closing)
    pipe.close()
    await quiet(pipe)
    return made


async def quiet(pipe: FakeTransport) -> None:
    """Wait until nothing more happens."""
    turns = 0
    seen = None
    while turns < QUIET_ITERATIONS:
        await asyncio.sleep(0)
        now = (len(pipe.written), pipe.lost, pipe.paused, len(pipe.waiting))
        turns = turns + 1 if now == seen else 0
        seen = now


def replies(written: bytes) -> tuple[Reply, ...]:
    """The responses in what was written, which must be complete."""
    made: list[Reply] = []
    while written:
        head, blank, rest = written.partition(b"\r\n\r\n")
        assert blank, written
        first, *lines = head.decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        if first == "HTTP/1.1 100 Continue":
            made.append(Reply(100, (), b""))
            written = rest
            continue
        assert headers.pop("Date"), head
        size = 0 if not rest or rest.startswith(b"HTTP/") else int(headers["Content-Length"])  # 0: the reply to HEAD
        assert len(rest) >= size, "a response is cut off"
        made.append(Reply(int(first.split(" ")[1]), tuple(sorted(headers.items())), rest[:size]))
        written = rest[size:]
    return tuple(made)
