"""HTTP responses through aiohttp, with tensors written from where they are in memory.

The tensors of a response are views of memory that the next request will reuse: `send_inference` returns only when the
transport holds none of them any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

import orjson
from aiohttp.web_request import BaseRequest
from aiohttp.web_response import Response, StreamResponse
from multidict import CIMultiDict

from mmsup.gateway.http import error_status
from mmsup.gateway.protocol.binary_tensors import HEADER
from mmsup.gateway.protocol.infer_response import InferResponse
from mmsup.ipc.errors import MmsupError, ServerError

JSON: Final = "application/json"
BINARY: Final = "application/octet-stream"
JOIN_LIMIT_BYTES: Final = 1 << 16
"""Responses up to this size are copied once and sent in one piece."""
WRITE_TIMEOUT_S: Final = 30.0
"""How long a client may take to read a piece of its response, which holds memory that others wait for."""
_PIECE_BYTES: Final = 1 << 20


def response_headers(kind: str, extra: Mapping[str, str] | None = None) -> CIMultiDict[str]:
    headers = CIMultiDict({"Content-Type": kind, "Server": "mmsup", "X-Content-Type-Options": "nosniff"})
    if extra:
        headers.update(extra)
    return headers


def json_response(value: Any, status: int = 200, extra: Mapping[str, str] | None = None) -> Response:  # any JSON value
    return Response(body=orjson.dumps(value), status=status, headers=response_headers(JSON, extra))


def empty_response(extra: Mapping[str, str] | None = None) -> Response:
    """Success without content: 200, which clients take for the only success."""
    return Response(body=b"", status=200, headers=response_headers(JSON, extra))


def error_response(error: MmsupError, request_id: str = "", extra: Mapping[str, str] | None = None) -> Response:
    headers = {**error_status.headers(error), **(extra or {})}
    made = Response(
        body=error_status.body(error, request_id),
        status=error_status.STATUS[error.code],
        headers=response_headers(JSON, headers),
    )
    if error.code in error_status.CLOSING:
        made.force_close()
    return made


async def send_inference(
    request: BaseRequest, inference: InferResponse, extra: Mapping[str, str] | None = None, *, last: bool = False
) -> StreamResponse:
    """Send an inference response; afterwards its tensors' memory is unused. `last`: close the connection."""
    headers = response_headers(JSON if inference.blobs is None else BINARY, extra)
    if inference.blobs is not None:
        headers[HEADER] = str(len(inference.head))
    if inference.size <= JOIN_LIMIT_BYTES:
        return Response(body=b"".join((inference.head, *(inference.blobs or ()))), headers=headers)
    headers["Content-Length"] = str(inference.size)
    response = StreamResponse(headers=headers)
    if last:
        response.force_close()
    await response.prepare(request)
    await _drain(request, response, [memoryview(inference.head), *(inference.blobs or ())])
    return response


async def _drain(request: BaseRequest, response: StreamResponse, parts: list[memoryview]) -> None:
    transport = request.transport
    if transport is None:
        raise ServerError("cancelled", "the client went away before its response")
    # With a high-water mark of 0 `drain` returns when the transport is empty, not when it holds little.
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
        raise ServerError("cancelled", "the client did not read its response") from None
    except ConnectionError:
        raise ServerError("cancelled", "the client went away during its response") from None
    except BaseException:
        transport.abort()  # it must not send what it still holds, from memory that another request uses by then
        raise
    finally:
        if not transport.is_closing():
            transport.set_write_buffer_limits()
