"""Replies on their way out: a small set of headers, and tensors written from where they lie.

Tensors of a reply are views of memory that the next request will reuse: `send_tensors` returns only when the transport
holds none of them any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from aiohttp.web_request import BaseRequest
from aiohttp.web_response import Response, StreamResponse
from multidict import CIMultiDict

from mmsup.gateway.http import error_status as status
from mmsup.gateway.protocol.binary_tensors import HEADER
from mmsup.gateway.protocol.infer_response import InferResponse
from mmsup.gateway.protocol.json_document import dump_json
from mmsup.ipc.errors import MmsupError, ServerError

JSON: Final = "application/json"
BINARY: Final = "application/octet-stream"
JOIN_LIMIT_BYTES: Final = 1 << 16
"""Replies up to this size are copied once and sent in one piece."""
WRITE_TIMEOUT_S: Final = 30.0
"""A client that does not take a piece of its reply in this time holds memory that others wait for."""
_PIECE_BYTES: Final = 1 << 20


def response_headers(kind: str, extra: Mapping[str, str] | None = None) -> CIMultiDict[str]:
    """The headers of every reply."""
    made = CIMultiDict({"Content-Type": kind, "Server": "mmsup", "X-Content-Type-Options": "nosniff"})
    if extra:
        made.update(extra)
    return made


def json_response(value: Any, status: int = 200, extra: Mapping[str, str] | None = None) -> Response:  # any JSON value
    """A JSON reply."""
    return Response(body=dump_json(value), status=status, headers=response_headers(JSON, extra))


def empty_response(extra: Mapping[str, str] | None = None) -> Response:
    """Success with nothing to say: 200, which clients take for the only success."""
    return Response(body=b"", status=200, headers=response_headers(JSON, extra))


def error_response(error: MmsupError, request_id: str = "", extra: Mapping[str, str] | None = None) -> Response:
    """The reply that tells of an error."""
    headers = {**status.headers(error), **(extra or {})}
    made = Response(
        body=status.body(error, request_id),
        status=status.http_status(error.code),
        headers=response_headers(JSON, headers),
    )
    if error.code in status.CLOSING:
        made.force_close()
    return made


async def send_inference(
    request: BaseRequest, reply: InferResponse, extra: Mapping[str, str] | None = None, *, last: bool = False
) -> StreamResponse:
    """Send an inference reply; afterwards its tensors' memory is free. `last`: the connection ends with it."""
    headers = response_headers(JSON if reply.blobs is None else BINARY, extra)
    if reply.blobs is not None:
        headers[HEADER] = str(len(reply.head))
    if reply.size <= JOIN_LIMIT_BYTES:
        return Response(body=b"".join((reply.head, *(reply.blobs or ()))), headers=headers)
    headers["Content-Length"] = str(reply.size)
    response = StreamResponse(headers=headers)
    if last:
        response.force_close()
    await response.prepare(request)
    await _drain(request, response, [memoryview(reply.head), *(reply.blobs or ())])
    return response


async def _drain(request: BaseRequest, response: StreamResponse, parts: list[memoryview]) -> None:
    transport = request.transport
    if transport is None:
        raise ServerError("cancelled", "the client went away before its reply")
    # With a high-water mark of 0 `drain` returns when nothing is left in the transport, not when little is.
    transport.set_write_buffer_limits(high=0)
    try:
        for part in parts:
            for at in range(0, len(part), _PIECE_BYTES):
                async with asyncio.timeout(WRITE_TIMEOUT_S):
                    await response.write(part[at : at + _PIECE_BYTES])
                    await request.writer.drain()
        await response.write_eof()
    except TimeoutError:
        transport.abort()
        raise ServerError("cancelled", "the client did not read its reply") from None
    except ConnectionError:
        raise ServerError("cancelled", "the client went away during its reply") from None
    except BaseException:
        transport.abort()  # whatever it still holds must not be sent from memory that is another's by then
        raise
    finally:
        if not transport.is_closing():
            transport.set_write_buffer_limits()
