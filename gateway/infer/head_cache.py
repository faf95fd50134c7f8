"""Heads of inference requests, known by their exact bytes: what aiohttp's parser read in them, once.

There is no second parser here: requests are smuggled where two parsers read the same bytes differently. Whoever calls
finds a blank line; the bytes up to it are looked up, and on a miss given to a fresh parser of aiohttp's. Only if it
finds exactly one message in them, has read them all and has counted no byte of a body, and only if that message is of
the one simple kind that the front serves, does a plan come of it. Everything else, all that is wrong above all, is
aiohttp's own to answer.

A plan holds facts (model, version, lengths), never a verdict: routes and limits are asked for each request. The cache
is bounded in number and in bytes, and what is not used leaves it.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import Final

from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import HttpRequestParser, RawRequestMessage
from aiohttp.http_writer import HttpVersion11

from mmsup.gateway.http import request_body
from mmsup.gateway.http.request import echoed_headers
from mmsup.gateway.http.request_body import THREAD_PARSE_BYTES
from mmsup.gateway.http.url_routes import match_path
from mmsup.gateway.protocol import binary_tensors
from mmsup.gateway.protocol.binary_tensors import BodyLayout
from mmsup.gateway.protocol.json_template import TEXT_LIMIT_BYTES
from mmsup.ipc.errors import CallerError
from mmsup.ipc.two_generation_cache import BoundedCache

HEAD_LIMIT_BYTES: Final = 2048
JSON_KEY_LIMIT_BYTES: Final = 2048
"""Bytes of JSON before blobs that are remembered."""
JSON_COST_UNIT_BYTES: Final = 1 << 12
"""Of JSON, which takes as long to read as everything else of a small request."""
INFER_PREFIX: Final = b"POST /v2/models/"
_CONTENT_LENGTH: Final = re.compile(r"[0-9]{1,18}")
_UNSUPPORTED_HEADERS: Final = ("Transfer-Encoding", "Content-Encoding", "Expect", "Upgrade")


@dataclass(frozen=True, slots=True, eq=False)
class ParsedHead:
    """What one head says. It is its own key: the same head has the same plan, for as long as that is remembered."""

    model: str
    version: str
    """Empty: the default one."""
    layout: BodyLayout
    echo: dict[str, str]
    """Headers that go back as they came."""
    request_id: str
    """By what name its client calls the request, as far as the head says."""
    has_cacheable_json: bool
    """JSON before blobs, short enough to be remembered."""
    has_cacheable_text: bool
    """JSON alone, short enough to be read at once."""
    is_fast_to_parse: bool
    """Nothing of it takes long to read."""
    cost: int
    """What it counts for where requests take turns: 1, and 1 more for every TEXT_UNIT_BYTES of JSON."""


class HeadCache:
    """One per gateway process."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._heads: BoundedCache[bytes, ParsedHead] = BoundedCache()
        self._protocol = BaseProtocol(loop)
        """The parser wants one, to slow down a sender; it is given no byte of a body."""

    def __len__(self) -> int:
        return len(self._heads)

    def get(self, head: bytes) -> ParsedHead | None:
        """What a head says (from its first byte through its blank line), None if it is not for the front."""
        plan = self._heads.recent.get(head) or self._heads.get(head)
        if plan is None and head.startswith(INFER_PREFIX):
            plan = self._parse(head)
            if plan is not None and len(head) <= HEAD_LIMIT_BYTES:
                self._heads.add(head, plan)
        return plan

    def _parse(self, head: bytes) -> ParsedHead | None:
        parser = HttpRequestParser(self._protocol, self._loop, 1 << 16, auto_decompress=False)
        try:
            messages, upgraded, rest = parser.feed_data(head)
        except HttpProcessingError:
            return None
        if len(messages) != 1 or upgraded or rest:
            return None
        ((message, body),) = messages
        return None if body.total_bytes else to_parsed_head(message)


def to_parsed_head(message: RawRequestMessage) -> ParsedHead | None:
    """The plan of a head that was read, None if it is not of the simple kind."""
    headers = message.headers
    lengths = headers.getall("Content-Length", [])
    if (
        message.method != "POST"
        or message.version != HttpVersion11
        or message.should_close
        or message.upgrade
        or message.chunked
        or any(name in headers for name in _UNSUPPORTED_HEADERS)
        or len(lengths) != 1
        or not _CONTENT_LENGTH.fullmatch(lengths[0])
        or request_body.is_unsupported(headers.get("Content-Type", ""))
    ):
        return None
    match = match_path(message.path)
    endpoint = match.methods.get("POST") if match else None
    sizes = headers.getall(binary_tensors.HEADER, [])
    if match is None or endpoint is None or endpoint.action != "infer" or len(sizes) > 1:
        return None
    try:
        layout = binary_tensors.body_layout(sizes[0] if sizes else None, int(lengths[0]))
    except CallerError:
        return None
    echo = echoed_headers(headers)
    has_words = 0 < layout.header <= min(JSON_KEY_LIMIT_BYTES, layout.size - 1)
    has_text = layout.header == layout.size <= TEXT_LIMIT_BYTES
    name = next(iter(echo.values()), "")
    return ParsedHead(
        match.names["model"],
        match.names.get("version", ""),
        layout,
        echo,
        name,
        has_words,
        has_text,
        layout.size <= THREAD_PARSE_BYTES,
        1 + layout.header // JSON_COST_UNIT_BYTES,
    )
