"""An HTTP/1.1 client that reports every anomaly: refused and reset connections, malformed and unexpected replies.

Connections are reused, the most recent first; there are as many as requests in flight. Nothing is retried.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

MAX_HEAD_BYTES: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class HttpCall:
    path: str
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    method: str = "POST"


@dataclass(frozen=True, slots=True)
class HttpReply:
    """One HTTP response; header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


class RequestFailed(Exception):  # noqa: N818 - what happened to the request
    """`kind` is that of its outcome in the history."""

    kind = "wrong"


class ConnectionReset(RequestFailed):
    """The connection ended before the reply."""

    kind = "reset"


class ConnectionRefused(RequestFailed):
    """Nothing listens at the address."""

    kind = "refused"


class MalformedReply(RequestFailed):
    pass


class ClientConnection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, unexpected: list[int], on_lost: Callable[[ClientConnection], None]) -> None:
        self.last_request = 0
        self._unexpected = unexpected
        self._on_lost = on_lost
        self._buffer = bytearray()
        self._waiting: asyncio.Future[HttpReply] | None = None
        self._transport: asyncio.Transport | None = None
        self.is_open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport), "a stream's transport"
        self._transport = transport
        self.is_open = True

    def data_received(self, data: bytes) -> None:
        if self._waiting is None or self._waiting.done():
            self._unexpected.append(self.last_request)
            return
        self._buffer += data
        try:
            found = parse_reply(self._buffer, at_end=False)
        except MalformedReply as error:
            self._waiting.set_exception(error)
            self.close()
            return
        if found is not None:
            reply, used = found
            del self._buffer[:used]
            self._waiting.set_result(reply)
            if self._buffer:
                self._unexpected.append(self.last_request)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        if self._waiting is not None and not self._waiting.done():
            found = None
            with contextlib.suppress(MalformedReply):
                found = parse_reply(self._buffer, at_end=exc is None)
            if found is not None:
                self._waiting.set_result(found[0])
            else:
                self._waiting.set_exception(ConnectionReset(str(exc or "closed")))
        self._on_lost(self)

    async def send(self, data: bytes) -> HttpReply:
        """Send the bytes of a request; its reply, else ConnectionReset or MalformedReply."""
        assert self._transport is not None, "the connection was not made"
        self._waiting = asyncio.get_running_loop().create_future()
        self._transport.write(data)
        try:
            return await self._waiting
        finally:
            self._waiting = None

    def write(self, data: bytes) -> None:
        """Send raw bytes, for clients that misbehave."""
        assert self._transport is not None, "the connection was not made"
        self._transport.write(data)

    def close(self) -> None:
        self.is_open = False
        if self._transport is not None:
            self._transport.abort()


class HttpClient:
    """A client of one address, with its idle connections."""

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port
        self.unexpected: list[int] = []
        """When a connection received bytes that belong to no request: the number of the last request on it."""
        self._idle: list[ClientConnection] = []

    async def send(self, call: HttpCall, number: int = 0) -> HttpReply:
        """Send a request; its reply, else ConnectionRefused, ConnectionReset or MalformedReply."""
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                break
        else:
            connection = await self.connect()
        connection.last_request = number
        try:
            reply = await connection.send(self.encode(call))
        except BaseException:
            connection.close()
            raise
        if reply.headers.get("connection", "").lower() != "close" and connection.is_open:
            self._idle.append(connection)
        else:
            connection.close()
        return reply

    async def connect(self, *, raw: bool = False) -> ClientConnection:
        """A new connection that belongs to the caller. On a raw one received bytes are ignored."""
        loop = asyncio.get_running_loop()
        try:
            _, made = await loop.create_connection(
                lambda: ClientConnection([] if raw else self.unexpected, self._discard), self.host, self.port
            )
        except ConnectionRefusedError as error:
            raise ConnectionRefused(str(error)) from None
        except OSError as error:
            raise ConnectionReset(str(error)) from None
        return made

    def encode(self, call: HttpCall) -> bytes:
        lines = [
            f"{call.method} {call.path} HTTP/1.1",
            f"Host: {self.host}:{self.port}",
            f"Content-Length: {len(call.body)}",
            *(f"{name}: {value}" for name, value in call.headers),
        ]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + call.body

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def _discard(self, connection: ClientConnection) -> None:
        if connection in self._idle:
            self._idle.remove(connection)


def parse_reply(got: bytearray, *, at_end: bool) -> tuple[HttpReply, int] | None:
    """The reply at the start of the buffer and its length in bytes; None while it is incomplete. `at_end`: the peer
    has closed the connection."""
    end = got.find(b"\r\n\r\n")
    if end < 0:
        if len(got) > MAX_HEAD_BYTES:
            raise MalformedReply(f"no end of the head within {MAX_HEAD_BYTES} bytes")
        return None
    status, headers = _parse_head(bytes(got[:end]))
    if status == 100:
        rest = parse_reply(got[end + 4 :], at_end=at_end)
        return (rest[0], rest[1] + end + 4) if rest else None
    body = _parse_body(got, end + 4, headers, at_end=at_end or status in (204, 304))
    return (HttpReply(status, headers, body[0]), body[1]) if body else None


def _parse_head(raw: bytes) -> tuple[int, dict[str, str]]:
    first, *rest = raw.decode("latin-1").split("\r\n")
    version, _, after = first.partition(" ")
    if not version.startswith("HTTP/1.") or not after[:3].isdigit():
        raise MalformedReply(f"{first:.60}")
    headers = {}
    for line in rest:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    return int(after[:3]), headers


def _parse_body(got: bytearray, begin: int, headers: dict[str, str], *, at_end: bool) -> tuple[bytes, int] | None:
    length = headers.get("content-length")
    if length is not None:
        if not length.isdigit():
            raise MalformedReply(f"Content-Length: {length:.40}")
        end = begin + int(length)
        return (bytes(got[begin:end]), end) if len(got) >= end else None
    if "chunked" in headers.get("transfer-encoding", "").lower():
        return _parse_chunks(got, begin)
    return (bytes(got[begin:]), len(got)) if at_end else None


def _parse_chunks(got: bytearray, at: int) -> tuple[bytes, int] | None:
    body = b""
    while True:
        line = got.find(b"\r\n", at)
        if line < 0:
            return None
        try:
            size = int(bytes(got[at:line]).split(b";")[0], 16)
        except ValueError:
            raise MalformedReply("a chunk without a size") from None
        at = line + 2 + size + 2
        if len(got) < at:
            return None
        if not size:
            return body, at
        body += got[line + 2 : line + 2 + size]
