"""A small HTTP/1.1 client that hides nothing: what was refused, reset, or said without being asked.

Connections are kept and used again, the last one first; there are as many as are needed at a time. Nothing is retried.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

HEAD_LIMIT: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class Call:
    """What goes out."""

    path: str
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    method: str = "POST"


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back."""

    status: int
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes


class Reset(Exception):  # noqa: N818 - what happened to the connection
    """The connection ended before the reply."""


class Refused(Exception):  # noqa: N818 - what happened to the connection
    """Nobody took the connection."""


class Nonsense(Exception):  # noqa: N818 - what the other side said
    """What came back is no HTTP."""


class Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, stray: Callable[[Connection], None], lost: Callable[[Connection], None]) -> None:
        self.last = 0
        """The request that it carried last, for whoever hears of a stray reply."""
        self._stray = stray
        self._lost = lost
        self._got = bytearray()
        self._waiting: asyncio.Future[Reply] | None = None
        self._transport: asyncio.Transport | None = None
        self.is_open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asyncio's word."""
        assert isinstance(transport, asyncio.Transport), "a stream's transport"
        self._transport = transport
        self.is_open = True

    def data_received(self, data: bytes) -> None:
        """Asyncio's word."""
        if self._waiting is None or self._waiting.done():
            self._stray(self)
            return
        self._got += data
        try:
            found = parsed(self._got, at_end=False)
        except Nonsense as error:
            self._waiting.set_exception(error)
            self.close()
            return
        if found is not None:
            reply, used = found
            del self._got[:used]
            self._waiting.set_result(reply)
            if self._got:
                self._stray(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Asyncio's word."""
        self.is_open = False
        if self._waiting is not None and not self._waiting.done():
            found = None
            with contextlib.suppress(Nonsense):
                found = parsed(self._got, at_end=exc is None)
            if found is not None:
                self._waiting.set_result(found[0])
            else:
                self._waiting.set_exception(Reset(str(exc or "closed")))
        self._lost(self)

    async def ask(self, data: bytes) -> Reply:
        """Send the bytes of a request; the reply, Reset or Nonsense."""
        assert self._transport is not None, "the connection was not made"
        self._waiting = asyncio.get_running_loop().create_future()
        self._transport.write(data)
        try:
            return await self._waiting
        finally:
            self._waiting = None

    def write(self, data: bytes) -> None:
        """Raw bytes, for clients that behave badly."""
        assert self._transport is not None, "the connection was not made"
        self._transport.write(data)

    def close(self) -> None:
        """Hang up."""
        self.is_open = False
        if self._transport is not None:
            self._transport.abort()


class Door:
    """The server's address, with the connections that wait to be used again."""

    def __init__(self, host: str, port: int, stray: Callable[[int], None]) -> None:
        """`stray` gets the request whose connection said something more."""
        self.host = host
        self.port = port
        self._on_stray = stray
        self._idle: list[Connection] = []

    async def ask(self, call: Call, number: int = 0) -> Reply:
        """One request; Refused, Reset or Nonsense if there is no reply."""
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                break
        else:
            connection = await self.connect()
        connection.last = number
        try:
            reply = await connection.ask(self.bytes_of(call))
        except BaseException:
            connection.close()
            raise
        if reply.headers.get("connection", "").lower() != "close" and connection.is_open:
            self._idle.append(connection)
        else:
            connection.close()
        return reply

    async def connect(self, *, raw: bool = False) -> Connection:
        """A new connection, its caller's own. On a raw one whatever comes back is nobody's business."""
        loop = asyncio.get_running_loop()
        try:
            _, made = await loop.create_connection(
                lambda: Connection(_deaf if raw else self._stray, self._forget), self.host, self.port
            )
        except ConnectionRefusedError as error:
            raise Refused(str(error)) from None
        except OSError as error:
            raise Reset(str(error)) from None
        return made

    def bytes_of(self, call: Call) -> bytes:
        """A request as it goes over the wire."""
        lines = [
            f"{call.method} {call.path} HTTP/1.1",
            f"Host: {self.host}:{self.port}",
            f"Content-Length: {len(call.body)}",
            *(f"{name}: {value}" for name, value in call.headers),
        ]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + call.body

    def close(self) -> None:
        """Hang up on everybody who waits."""
        while self._idle:
            self._idle.pop().close()

    def _stray(self, connection: Connection) -> None:
        self._on_stray(connection.last)

    def _forget(self, connection: Connection) -> None:
        if connection in self._idle:
            self._idle.remove(connection)


def _deaf(_: Connection) -> None:
    pass


def parsed(got: bytearray, *, at_end: bool) -> tuple[Reply, int] | None:
    """The reply that these bytes begin with, and how many it took; None while it is not whole."""
    end = got.find(b"\r\n\r\n")
    if end < 0:
        if len(got) > HEAD_LIMIT:
            raise Nonsense("a head without an end")
        return None
    status, headers = _head(bytes(got[:end]))
    if status == 100:
        rest = parsed(got[end + 4 :], at_end=at_end)
        return (rest[0], rest[1] + end + 4) if rest else None
    body = _body(got, end + 4, headers, at_end=at_end or status in (204, 304))
    return (Reply(status, headers, body[0]), body[1]) if body else None


def _head(raw: bytes) -> tuple[int, dict[str, str]]:
    first, *rest = raw.decode("latin-1").split("\r\n")
    version, _, after = first.partition(" ")
    if not version.startswith("HTTP/1.") or not after[:3].isdigit():
        raise Nonsense(f"{first:.60}")
    headers = {}
    for line in rest:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    return int(after[:3]), headers


def _body(got: bytearray, begin: int, headers: dict[str, str], *, at_end: bool) -> tuple[bytes, int] | None:
    length = headers.get("content-length")
    if length is not None:
        if not length.isdigit():
            raise Nonsense(f"Content-Length: {length:.40}")
        end = begin + int(length)
        return (bytes(got[begin:end]), end) if len(got) >= end else None
    if "chunked" in headers.get("transfer-encoding", "").lower():
        return _chunks(got, begin)
    return (bytes(got[begin:]), len(got)) if at_end else None


def _chunks(got: bytearray, at: int) -> tuple[bytes, int] | None:
    body = b""
    while True:
        line = got.find(b"\r\n", at)
        if line < 0:
            return None
        try:
            size = int(bytes(got[at:line]).split(b";")[0], 16)
        except ValueError:
            raise Nonsense("a chunk without a size") from None
        at = line + 2 + size + 2
        if len(got) < at:
            return None
        if not size:
            return body, at
        body += got[line + 2 : line + 2 + size]
