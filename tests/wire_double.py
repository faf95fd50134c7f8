"""Two servers over one backend, one with the front and one of aiohttp alone, met without a socket.

Bytes go straight into the protocols, in pieces of the test's choice, and what they write is kept. Nothing waits for
time: when nothing has happened for a number of loop turns, nothing more will.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from gateway_double import FakeRouter
from mmsup.gateway.api.app import HttpApp
from mmsup.gateway.connections.aiohttp_connection import HttpListener
from mmsup.gateway.connections.context import ConnectionContext
from mmsup.gateway.infer.handler import InferHandler
from mmsup.gateway.observability.request_counters import RequestCounters
from mmsup.ipc.memory.counters import CounterTable

QUIET_TURNS = 12


@dataclass(frozen=True)
class Reply:
    """One reply: status, headers but for the date, body."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


@dataclass(frozen=True)
class Outcome:
    """All that came of some bytes."""

    replies: tuple[Reply, ...]
    closed: bool


class FakeTransport(asyncio.Transport):
    """A transport to nowhere, which keeps what is written."""

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
        self._pass_on()

    def _pass_on(self) -> None:
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
        assert not self.lost, "something is written to a connection that is gone"
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
            self.loop.call_soon(self._pass_on)

    def is_closing(self) -> bool:
        return self.closing

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


def listener(backend: FakeRouter, tally: CounterTable, *, fast: bool) -> HttpListener:
    """What serves `backend`."""
    core = InferHandler(backend, RequestCounters([tally], 0), backend.threads)
    shared = ConnectionContext(core, asyncio.get_running_loop()) if fast else None
    return HttpListener(HttpApp(core).serve, is_local=True, shared=shared)


async def outcome(to: Callable[[], Any], pieces: Sequence[bytes]) -> Outcome:
    """What comes of these bytes on a fresh connection, each piece sent when nothing more came of the one before."""
    pipe = FakeTransport(to())
    for piece in pieces:
        pipe.send(piece)
        await quiet(pipe)
    made = Outcome(replies(bytes(pipe.written)), pipe.closing)
    pipe.close()
    await quiet(pipe)
    return made


async def quiet(pipe: FakeTransport) -> None:
    """Returns when nothing more happens."""
    turns = 0
    seen = None
    while turns < QUIET_TURNS:
        await asyncio.sleep(0)
        now = (len(pipe.written), pipe.lost, pipe.paused, len(pipe.waiting))
        turns = turns + 1 if now == seen else 0
        seen = now


def replies(written: bytes) -> tuple[Reply, ...]:
    """The replies in what was written, which must be whole."""
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
        assert len(rest) >= size, "a reply is cut off"
        made.append(Reply(int(first.split(" ")[1]), tuple(sorted(headers.items())), rest[:size]))
        written = rest[size:]
    return tuple(made)
