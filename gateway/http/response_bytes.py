"""Replies as bytes, for connections that aiohttp does not write to: what it would write there.

The headers, the statuses and the bodies are those of `answer` and `status`; only their form on the wire is made here.
"""

from __future__ import annotations

import http
from collections.abc import Mapping
from typing import Final

from aiohttp.helpers import rfc822_formatted_time

from mmsup.gateway.http import error_status, response
from mmsup.gateway.protocol.binary_tensors import HEADER
from mmsup.gateway.protocol.infer_response import InferResponse
from mmsup.ipc.errors import MmsupError

_PHRASES: Final = {int(each): each.phrase for each in http.HTTPStatus}
Parts = list[bytes | memoryview]


def head_start(code: int, kind: str, extra: Mapping[str, str], size: int) -> bytes:
    """A head up to the value of its last header, the date, which changes from second to second."""
    if extra:
        return b"%bContent-Length: %d\r\nDate: " % (_headers(code, kind, extra), size)
    known = _known_headers.get((code, kind))
    if known is None:
        known = _known_headers[code, kind] = _headers(code, kind, extra)
    return b"%bContent-Length: %d\r\nDate: " % (known, size)


_known_headers: Final[dict[tuple[int, str], bytes]] = {}
"""Of replies with no headers of their own; a few statuses, two kinds."""


def _headers(code: int, kind: str, extra: Mapping[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {code} {_PHRASES.get(code, '')}"]
    lines += [f"{name}: {value}" for name, value in response.response_headers(kind, extra).items()]
    return "\r\n".join([*lines, ""]).encode()


class _Date:
    """The rest of a head; the date is the same text for a second."""

    def __init__(self) -> None:
        self._text = ""
        self._bytes = b""

    def now(self) -> bytes:
        text = rfc822_formatted_time()
        if text is not self._text:
            self._text, self._bytes = text, f"{text}\r\n\r\n".encode()
        return self._bytes


head_end: Final = _Date().now
"""The rest of a head."""


def error_bytes(error: MmsupError, request_id: str, echo: Mapping[str, str]) -> bytes:
    """The reply that tells of an error."""
    body = error_status.body(error, request_id)
    extra = {**error_status.headers(error), **echo}
    return head_start(error_status.http_status(error.code), response.JSON, extra, len(body)) + head_end() + body


def inference_parts(reply: InferResponse, echo: Mapping[str, str]) -> tuple[bytes, Parts]:
    """The reply to an inference: the start of its head, and its body."""
    extra = dict(echo)
    if reply.blobs is not None:
        extra[HEADER] = str(len(reply.head))
    kind = response.JSON if reply.blobs is None else response.BINARY
    return head_start(200, kind, extra, reply.size), [reply.head, *(reply.blobs or ())]
