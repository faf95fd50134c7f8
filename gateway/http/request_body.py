"""Receiving a request body through aiohttp: limits on bytes and time, decompression within the same limits.

A body of known length is written directly into the memory that the model will read; one of unknown length (chunked,
compressed) is collected in the gateway's own memory first.
"""

from __future__ import annotations

import asyncio
import re
import time
import zlib
from collections.abc import Callable
from typing import Final

from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestPayloadError
from aiohttp.web_request import BaseRequest

from mmsup.ipc.errors import CallerError, ServerError

IDLE_S: Final = 30.0
"""Between two parts of a body."""
TOTAL_S: Final = 600.0
"""For the whole body."""
DOCUMENT_LIMIT_BYTES: Final = 1 << 20
"""Bodies of control requests, which are parsed on the event loop."""
COPY_BYTES: Final = 1 << 20
"""Bytes copied per event-loop iteration."""
THREAD_PARSE_BYTES: Final = 1 << 16
"""Larger JSON is parsed in another thread: it takes milliseconds."""
INFLATE_STEP_BYTES: Final = 1 << 18
"""Bytes decompressed per event-loop iteration; about a millisecond."""
_WINDOW_BITS: Final = {"gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}
_UNSUPPORTED: Final = re.compile(r"multipart/|[^;]*(?:pickle|xml)\b", re.IGNORECASE)


def check_head(request: BaseRequest, limit_bytes: int) -> int | None:
    """The length of the body, None if it is unknown; CallerError if it cannot be accepted."""
    kind = request.headers.get("Content-Type", "")
    if is_unsupported(kind):
        raise CallerError("unsupported_media", f"content of type '{kind:.80}' is not read here: send JSON")
    coding = _coding(request)
    length = request.content_length
    if length is not None and length > limit_bytes:
        raise too_large_error(length, limit_bytes)
    return None if coding else length if length is not None or request.can_read_body else 0


def is_unsupported(kind: str) -> bool:
    """Whether a content type is never accepted."""
    return _UNSUPPORTED.match(kind) is not None


def timeout_error() -> CallerError:
    return CallerError("body_timeout", "the body of the request did not come in time")


def too_large_error(size: int | None, limit_bytes: int) -> CallerError:
    """`size` None: unknown."""
    subject = "the request" if size is None else f"a request of {size} bytes"
    text = f"{subject} exceeds the maximum allowed {limit_bytes} bytes; raise --http-max-input-size"
    return CallerError("too_large", text)


def _coding(request: BaseRequest) -> str:
    """The Content-Encoding; empty for none."""
    coding = request.headers.get("Content-Encoding", "").strip().lower()
    if coding in ("", "identity"):
        return ""
    if coding not in _WINDOW_BITS:
        raise CallerError("unsupported_media", f"Content-Encoding '{coding:.40}' is not known: use gzip or deflate")
    return coding


async def send_continue(request: BaseRequest) -> None:
    """Tell a client that waits for it (`Expect: 100-continue`) to send the body; after the head was checked."""
    if request.headers.get("Expect", "").lower() == "100-continue":
        try:
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        except ConnectionError:
            raise ServerError("cancelled", "the client went away before it sent the body") from None
        request.writer.output_size = 0


async def read_into(request: BaseRequest, view: memoryview) -> None:
    """Receive a body of known length into `view`."""
    source, at = _Chunks(request), 0
    while chunk := await source.next():
        if at + len(chunk) > len(view):
            raise CallerError("bad_request", f"the body has more than the {len(view)} bytes that its head says")
        view[at : at + len(chunk)] = chunk
        at += len(chunk)
    if at != len(view):
        raise CallerError("bad_request", f"the body ended after {at} of {len(view)} bytes")


async def read_all(request: BaseRequest, limit_bytes: int, reserve: Callable[[int], None] | None = None) -> bytearray:
    """Receive a body of unknown length, decompressed. `reserve`: called before it grows by that many bytes."""
    coding = _coding(request)
    body = bytearray()
    source = _InflatedChunks(_Chunks(request), coding) if coding else _Chunks(request)
    while chunk := await source.next():
        if len(body) + len(chunk) > limit_bytes:
            raise too_large_error(None, limit_bytes)
        if reserve is not None:
            reserve(len(chunk))
        body += chunk
    return body


async def copy_in_steps(body: bytes | bytearray | memoryview, view: memoryview) -> None:
    """Copy without blocking the event loop for long."""
    source = memoryview(body)
    for at in range(0, len(source), COPY_BYTES):
        if at:
            await asyncio.sleep(0)
        view[at : at + COPY_BYTES] = source[at : at + COPY_BYTES]


class _Chunks:
    """The body as it arrives."""

    def __init__(self, request: BaseRequest) -> None:
        self._content = request.content
        self._end_s = time.monotonic() + TOTAL_S

    async def next(self) -> bytes:
        """The next bytes, empty at the end; ServerError `cancelled` if the client has gone."""
        content = self._content
        try:
            while not content.at_eof():
                ready = content.read_nowait()
                if not ready:
                    async with asyncio.timeout(min(IDLE_S, self._end_s - time.monotonic())):
                        ready = await content.readany()
                if ready:
                    return ready
        except TimeoutError:
            raise timeout_error() from None
        except (RequestPayloadError, HttpProcessingError):
            raise CallerError("bad_request", "the body does not follow the framing that its head announces") from None
        except ConnectionError:
            raise ServerError("cancelled", "the client went away before its request was complete") from None
        return b""


class _InflatedChunks:
    """A compressed body, decompressed in steps: a few bytes can become very many."""

    def __init__(self, source: _Chunks, coding: str) -> None:
        self._source = source
        self._coding = coding
        self._engine = zlib.decompressobj(_WINDOW_BITS[coding])

    async def next(self) -> bytes:
        """The next decompressed bytes, empty at the end."""
        engine = self._engine
        try:
            while not engine.eof:
                data = engine.decompress(engine.unconsumed_tail, INFLATE_STEP_BYTES)
                if data:
                    await asyncio.sleep(0)
                    return data
                if not engine.unconsumed_tail:
                    chunk = await self._source.next()
                    if not chunk:
                        raise CallerError("bad_request", f"the {self._coding} body is cut off")
                    data = engine.decompress(chunk, INFLATE_STEP_BYTES)
                    if data:
                        return data
        except zlib.error:
            text = f"the body is not {self._coding}, as its Content-Encoding says"
            raise CallerError("bad_request", text) from None
        if engine.unused_data or await self._source.next():
            raise CallerError("bad_request", f"something follows the {self._coding} body")
        return b""
