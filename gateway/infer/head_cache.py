"""Caches heads of inference requests by their exact bytes: what aiohttp's parser read in them, once.

There is no second parser here, because requests can be smuggled where two parsers read the same bytes differently.
The bytes up to the blank line are looked up and, on a miss, given to a fresh parser of aiohttp's. A head is cached
only if that finds exactly one message, consumes all bytes and counts no byte of a body, and if the message is of the
simple kind that a fast connection serves. Everything else, malformed requests above all, is left to aiohttp.

A ParsedHead holds facts (model, version, lengths), never a decision: routes and limits are checked for each request.
The cache is bounded in number and in bytes, and drops what is not used.
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
from mmsup.gateway.http.host_policy import host_name
from mmsup.gateway.http.request import ID_HEADER, echoed_headers
from mmsup.gateway.http.request_body import THREAD_PARSE_BYTES
from mmsup.gateway.http.url_routes import match_path
from mmsup.gateway.protocol import binary_tensors
from mmsup.gateway.protocol.binary_tensors import BodyLayout
from mmsup.gateway.protocol.json_template import TEXT_LIMIT_BYTES
from mmsup.ipc.bounded_cache import KEYS_LIMIT, BoundedCache
from mmsup.ipc.errors import CallerError

HEAD_LIMIT_BYTES: Final = 2048
HEADS_LIMIT_BYTES: Final = 16 << 20
"""Of a gateway, with what was read in them."""
_ENTRY_BYTES: Final = 2048
JSON_KEY_LIMIT_BYTES: Final = 2048
"""The longest JSON part before binary tensors that is cached."""
KNOWN_LIMIT_BYTES: Final = 1 << 16
"""The longest body of a known request: what one read of a connection may bring."""
JSON_COST_UNIT_BYTES: Final = 1 << 12
"""So much JSON takes as long to parse as all else of a small request."""
INFER_PREFIX: Final = b"POST /v2/models/"
_CONTENT_LENGTH: Final = re.compile(r"[0-9]{1,18}")
_VARYING: Final = re.compile(
    rb"\r\n(?:traceparent: 00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}|x-request-id: ([\x21-\x7e]{1,128}))(?=\r\n[^ \t])",
    re.IGNORECASE,
)
"""The W3C's trace context, which nothing here reads, and the client's own id."""
_UNSUPPORTED_HEADERS: Final = ("Transfer-Encoding", "Content-Encoding", "Expect", "Upgrade")


@dataclass(frozen=True, slots=True, eq=False)
class ParsedHead:
    """One parsed head. Compared by identity: while it is cached, equal heads have the same object."""

    host: str
    """Its name, without the port. Whether a listener answers to it is checked for each connection."""
    model: str
    version: str
    """Empty: the default version."""
    layout: BodyLayout
    buffer_bytes: int
    """`layout.space`, computed once."""
    json_end: int
    """`layout.blobs_start`, computed once."""
    echo_id: str
    """The client's own id of the request, if the head has one; the response repeats it."""
    has_id_header: bool
    """Whether the head has such a header, valid or not."""
    has_cacheable_json: bool
    """The body is JSON before binary tensors, short enough to be cached."""
    has_cacheable_text: bool
    """The body is JSON alone, short enough for a template."""
    may_be_known: bool
    """One of the two, and the body is short."""
    is_fast_to_parse: bool
    text: bytes
    """The head itself; empty if it is too long to be cached."""
    cost: int
    """Units of the fair queue: 1, and 1 more for every JSON_COST_UNIT_BYTES of JSON."""


class HeadCache:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._heads: BoundedCache[bytes, ParsedHead] = BoundedCache(
            KEYS_LIMIT, HEADS_LIMIT_BYTES, lambda head, _: _ENTRY_BYTES + 2 * len(head)
        )
        self._protocol = BaseProtocol(loop)
        """The parser needs one to pause a sender; it gets no byte of a body."""

    def __len__(self) -> int:
        return len(self._heads)

    def get(self, head: bytes) -> tuple[ParsedHead, str] | None:
        """The parsed head, and the client's own id of the request in it; None if a fast connection does not serve it.
        `head` includes the blank line. Lines that differ in every request are cut out of what is parsed."""
        parsed = self._heads.recent.get(head) or self._heads.get(head)
        if parsed is None and head.startswith(INFER_PREFIX):
            rest, echo_id = cut_lines(head)
            if rest is not head:
                parsed = self._heads.recent.get(rest) or self._heads.get(rest) or self._parse_rest(head, rest)
                if parsed is not None and not (echo_id and parsed.has_id_header):
                    return parsed, echo_id or parsed.echo_id
            parsed = self._parse(head)
            if parsed is not None and parsed.text:
                self._heads.add(head, parsed)
        return (parsed, parsed.echo_id) if parsed is not None else None

    def _parse_rest(self, head: bytes, rest: bytes) -> ParsedHead | None:
        """The rest of a head, if the whole of it says the same but for the id."""
        whole, parsed = self._parse(head), self._parse(rest)
        if whole is None or parsed is None or not parsed.text:
            return None
        if (whole.host, whole.model, whole.version, whole.layout) != (
            *(parsed.host, parsed.model, parsed.version, parsed.layout),
        ):
            return None
        self._heads.add(rest, parsed)
        return parsed

    def _parse(self, head: bytes) -> ParsedHead | None:
        parser = HttpRequestParser(self._protocol, self._loop, 1 << 16, auto_decompress=False)
        try:
            messages, upgraded, rest = parser.feed_data(head)
        except HttpProcessingError:
            return None
        if len(messages) != 1 or upgraded or rest:
            return None
        ((message, body),) = messages
        text = head if len(head) <= HEAD_LIMIT_BYTES else b""
        return None if body.total_bytes else to_parsed_head(message, text)


def cut_lines(head: bytes) -> tuple[bytes, str]:
    """The head without the lines that differ in every request, and the id in them. They are cut out only in the exact
    form in which no parser can read anything else in them: on one line, one of each kind, no continuation behind."""
    parts = _VARYING.split(head) if len(head) <= HEAD_LIMIT_BYTES else [head]
    ids = [each for each in parts[1::2] if each is not None]
    if len(parts) == 1 or len(ids) > 1 or len(parts) // 2 - len(ids) > 1:
        return head, ""
    return b"".join(parts[::2]), ids[0].decode() if ids else ""


def to_parsed_head(message: RawRequestMessage, text: bytes) -> ParsedHead | None:
    """None if the message is not of the simple kind that a fast connection serves."""
    headers = message.headers
    lengths = headers.getall("Content-Length", [])
    hosts = headers.getall("Host", [])
    if (
        message.method != "POST"
        or message.version != HttpVersion11
        or message.should_close
        or message.upgrade
        or message.chunked
        or any(name in headers for name in _UNSUPPORTED_HEADERS)
        or len(hosts) != 1
        or not message.path.startswith("/")
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
    has_json = 0 < layout.header <= min(JSON_KEY_LIMIT_BYTES, layout.size - 1)
    has_text = layout.header == layout.size <= TEXT_LIMIT_BYTES
    return ParsedHead(
        host=host_name(hosts[0]),
        model=match.names["model"],
        version=match.names.get("version", ""),
        layout=layout,
        buffer_bytes=layout.space,
        json_end=layout.blobs_start,
        echo_id=echo.get(ID_HEADER, ""),
        has_id_header=ID_HEADER in headers,
        has_cacheable_json=has_json,
        has_cacheable_text=has_text,
        may_be_known=layout.size <= KNOWN_LIMIT_BYTES and (has_json or has_text),
        is_fast_to_parse=layout.size <= THREAD_PARSE_BYTES,
        text=text,
        cost=1 + layout.header // JSON_COST_UNIT_BYTES,
    )
