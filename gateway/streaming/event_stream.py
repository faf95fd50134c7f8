"""Server-sent events over one response of aiohttp: each is written at once, and the next one waits until it has left.

A client that reads slowly is waited for, at most WRITE_TIMEOUT_S for each event; meanwhile nothing else is taken from
the model, which stops in its turn. So what a client does not read is one event here, and what the kernel buffers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

from aiohttp.web_request import BaseRequest
from aiohttp.web_response import StreamResponse

from mmsup.gateway.http import response
from mmsup.ipc.errors import ServerError

EVENT_STREAM: Final = "text/event-stream; charset=utf-8"
SMALL_BYTES: Final = 1 << 15
"""Of a document that aiohttp passes on to the transport at once."""


class EventStream:
    def __init__(self, request: BaseRequest, extra: Mapping[str, str], *, is_last: bool) -> None:
        """`is_last`: the connection is closed after it."""
        self._request = request
        headers = response.response_headers(EVENT_STREAM, {"Cache-Control": "no-cache", **extra})
        self.response = StreamResponse(headers=headers)
        if is_last:
            self.response.force_close()

    @property
    def is_started(self) -> bool:
        return self.response.prepared

    async def send(self, document: bytes) -> None:
        """Send one JSON document; ServerError `cancelled` if the client is gone, or has not read for too long."""
        transport = self._request.transport
        if transport is None:
            raise ServerError("cancelled", "the client went away during its response")
        try:
            if self.is_started and len(document) <= SMALL_BYTES:
                await self.response.write(b"data: %b\n\n" % document)  # waits for nothing: all before it has left
                if not transport.get_write_buffer_size():
                    return
                document = b""
            async with asyncio.timeout(response.WRITE_TIMEOUT_S):
                await self.start()
                if document:
                    await self.response.write(b"data: %b\n\n" % document)
                await self._request.writer.drain()
        except TimeoutError:
            transport.abort()
            raise ServerError("cancelled", "the client did not read its response") from None
        except ConnectionError:
            raise ServerError("cancelled", "the client went away during its response") from None

    async def start(self) -> None:
        if not self.is_started:
            await self.response.prepare(self._request)
            transport = self._request.transport
            if transport is not None:
                # With a high-water mark of 0 `drain` returns when the transport is empty, not when it holds little.
                transport.set_write_buffer_limits(high=0)

    async def finish(self) -> StreamResponse:
        """The end of the response, after the last document."""
        await self.start()
        transport = self._request.transport
        try:
            async with asyncio.timeout(response.WRITE_TIMEOUT_S):
                await self.response.write_eof()
        except (TimeoutError, ConnectionError):
            if transport is not None:
                transport.abort()
        else:
            if transport is not None and not transport.is_closing():
                transport.set_write_buffer_limits()
        return self.response
