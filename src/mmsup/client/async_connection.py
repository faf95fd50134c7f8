"""One connection to a server on an asyncio loop. The caller bounds the time of each operation."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Sequence
from typing import Final

from mmsup.client import http_message
from mmsup.client.address import ServerAddress
from mmsup.client.errors import ConnectionFailed, InvalidReply
from mmsup.client.http_message import ChunkedBody, ResponseHead
from mmsup.client.replies import HttpReply

READ_BYTES: Final = 1 << 18
_JOIN_BYTES: Final = 1 << 16
"""Parts up to this size leave in one piece."""


class AsyncConnection:
    """Made by `open_connection`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.is_usable = True
        """Another request may follow."""

    @property
    def is_stale(self) -> bool:
        """The server has closed it."""
        return not self.is_usable or self._reader.at_eof() or self._writer.is_closing()

    async def send(self, parts: Sequence[bytes | memoryview]) -> None:
        self.is_usable = False
        with contextlib.suppress(ConnectionError):  # what the server has said before it closed is still to be read
            if sum(map(len, parts)) <= _JOIN_BYTES:
                self._writer.write(b"".join(parts))
            else:
                for each in parts:
                    self._writer.write(each)
                    await self._writer.drain()
            await self._writer.drain()

    async def receive(self) -> HttpReply:
        """The whole answer."""
        head = await self.receive_head()
        return HttpReply(head, await self.receive_rest(head))

    async def receive_rest(self, head: ResponseHead) -> memoryview:
        """The body behind a head."""
        if head.length is None:
            return memoryview(b"".join([each async for each in self.receive_chunks()]))
        padding, at = head.padding, 0
        body = memoryview(bytearray(padding + head.length))[padding:]
        while at < head.length:
            piece = await self._read(min(READ_BYTES, head.length - at))
            body[at : at + len(piece)] = piece
            at += len(piece)
        self.is_usable = not head.is_last
        return body

    async def receive_head(self) -> ResponseHead:
        while True:
            try:
                head = http_message.parse_head(await self._reader.readuntil(http_message.END))
            except asyncio.IncompleteReadError:
                text = "the server closed the connection before its answer was complete"
                raise ConnectionFailed(text, was_sent=True) from None
            except OSError as error:
                raise ConnectionFailed(f"the connection ended: {error.strerror or error}", was_sent=True) from None
            except (ValueError, asyncio.LimitOverrunError) as error:
                raise InvalidReply(str(error)) from None
            if head.status != 100:
                return head

    async def receive_chunks(self) -> AsyncIterator[bytes]:
        """The pieces of a chunked body as they come."""
        body = ChunkedBody()
        while not body.is_complete:
            try:
                piece = body.feed(await self._read(READ_BYTES))
            except ValueError as error:
                raise InvalidReply(str(error)) from None
            if piece:
                yield piece
        self.is_usable = True

    async def _read(self, count: int) -> bytes:
        try:
            data = await self._reader.read(count)
        except OSError as error:
            raise ConnectionFailed(f"the connection ended: {error.strerror or error}", was_sent=True) from None
        if not data:
            raise ConnectionFailed("the server closed the connection before its answer was complete", was_sent=True)
        return data

    def close(self) -> None:
        self.is_usable = False
        self._writer.close()

    async def wait_closed(self) -> None:
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


async def open_connection(address: ServerAddress) -> AsyncConnection:
    """ConnectionFailed if there is no server."""
    try:
        if address.path:
            return AsyncConnection(*await asyncio.open_unix_connection(address.path))
        reader, writer = await asyncio.open_connection(address.host, address.port)
    except OSError as error:
        raise ConnectionFailed(f"no connection to {address}: {error.strerror or error}") from None
    sock = writer.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return AsyncConnection(reader, writer)
