"""HTTP responses as bytes, for connections to which aiohttp does not write; the same bytes that aiohttp would write.

Headers, statuses and bodies come from response.py and error_status.py.
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
    """A head up to the value of its last header, the date; complete it with `head_end`."""
    return b"%b%d\r\nDate: " % (length_start(code, kind, extra), size)


def length_start(code: int, kind: str, extra: Mapping[str, str]) -> bytes:
    """A head up to the value of Content-Length, after which the date follows."""
    headers = _headers(code, kind, extra) if extra else _known_headers.get((code, kind))
    if headers is None:
        headers = _known_headers[code, kind] = _headers(code, kind, extra)
    return headers


_known_headers: Final[dict[tuple[int, str], bytes]] = {}
"""Heads up to the value of Content-Length, of responses without extra headers: a few statuses, two content types."""


def _headers(code: int, kind: str, extra: Mapping[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {code} {_PHRASES.get(code, '')}"]
    lines += [f"{name}: {value}" for name, value in response.response_headers(kind, extra).items()]
    return "\r\n".join([*lines, "Content-Length: "]).encode()


class _Date:
    """The date and the end of a head, formatted once a second."""

    def __init__(self) -> None:
        self._second = 0
        self._text = ""
        self._bytes = b""

    def at(self, second: int = 0) -> bytes:
        if second and second == self._second:
            return self._bytes
        text = rfc822_formatted_time()
        if text is not self._text:
            self._second, self._text, self._bytes = second, text, f"{text}\r\n\r\n".encode()
        return self._bytes


head_end: Final = _Date().at
"""The date and the blank line that complete a head. `second`: the current one since 1970, for a caller that
has read it anyway."""


def error_bytes(error: MmsupError, request_id: str, echo: Mapping[str, str]) -> bytes:
    body = error_status.body(error, request_id)
    extra = {**error_status.headers(error), **echo}
    return head_start(error_status.STATUS[error.code], response.JSON, extra, len(body)) + head_end() + body


def inference_parts(inference: InferResponse, echo: Mapping[str, str]) -> tuple[bytes, Parts]:
    """An inference response: the start of its head, and its body."""
    start = b"%b%d\r\nDate: " % (inference_start(inference, echo), inference.size)
    return start, [inference.head, *(inference.blobs or ())]


def inference_start(inference: InferResponse, echo: Mapping[str, str]) -> bytes:
    """The head of an inference response up to the value of Content-Length."""
    extra = dict(echo)
    if inference.blobs is not None:
        extra[HEADER] = str(len(inference.head))
    kind = response.JSON if inference.blobs is None else response.BINARY
    return length_start(200, kind, extra)
