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
from mmsup.gateway.http.request import echo_of
from mmsup.gateway.http.request_body import ASIDE_BYTES
from mmsup.gateway.http.url_routes import find
from mmsup.gateway.protocol import binary_tensors
from mmsup.gateway.protocol.binary_tensors import Layout
from mmsup.gateway.protocol.json_template import TEXT_LIMIT_BYTES
from mmsup.ipc.errors import CallerError
from mmsup.ipc.two_generation_cache import Halves

KEY_BYTES_LIMIT: Final = 2048
WORDS_LIMIT: Final = 2048
"""Bytes of JSON before blobs that are remembered."""
TEXT_UNIT_BYTES: Final = 1 << 12
"""Of JSON, which takes as long to read as everything else of a small request."""
OURS: Final = b"POST /v2/models/"
_LENGTH: Final = re.compile(r"[0-9]{1,18}")
_ELSEWHERE: Final = ("Transfer-Encoding", "Content-Encoding", "Expect", "Upgrade")


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What one head says. It is its own key: the same head has the same plan, for as long as that is remembered."""

    model: str
    version: str
    """Empty: the default one."""
    layout: Layout
    echo: dict[str, str]
    """Headers that go back as they came."""
    request_id: str
    """By what name its client calls the request, as far as the head says."""
    has_words: bool
    """JSON before blobs, short enough to be remembered."""
    has_text: bool
    """JSON alone, short enough to be read at once."""
    is_short: bool
    """Nothing of it takes long to read."""
    cost: int
    """What it counts for where requests take turns: 1, and 1 more for every TEXT_UNIT_BYTES of JSON."""


class Plans:
    """One per gateway process."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._known: Halves[bytes, Plan] = Halves()
        self._bystander = BaseProtocol(loop)
        """The parser wants one, to slow down a sender; it is given no byte of a body."""

    def __len__(self) -> int:
        return len(self._known)

    def of(self, head: bytes) -> Plan | None:
        """What a head says (from its first byte through its blank line), None if it is not for the front."""
        plan = self._known.young.get(head) or self._known.get(head)
        if plan is None and head.startswith(OURS):
            plan = self._read(head)
            if plan is not None and len(head) <= KEY_BYTES_LIMIT:
                self._known.put(head, plan)
        return plan

    def _read(self, head: bytes) -> Plan | None:
        parser = HttpRequestParser(self._bystander, self._loop, 1 << 16, auto_decompress=False)
        try:
            messages, upgraded, rest = parser.feed_data(head)
        except HttpProcessingError:
            return None
        if len(messages) != 1 or upgraded or rest:
            return None
        ((message, body),) = messages
        return None if body.total_bytes else plan_of(message)


def plan_of(message: RawRequestMessage) -> Plan | None:
    """The plan of a head that was read, None if it is not of the simple kind."""
    headers = message.headers
    lengths = headers.getall("Content-Length", [])
    if (
        message.method != "POST"
        or message.version != HttpVersion11
        or message.should_close
        or message.upgrade
        or message.chunked
        or any(name in headers for name in _ELSEWHERE)
        or len(lengths) != 1
        or not _LENGTH.fullmatch(lengths[0])
        or request_body.is_foreign(headers.get("Content-Type", ""))
    ):
        return None
    match = find(message.path)
    endpoint = match.methods.get("POST") if match else None
    sizes = headers.getall(binary_tensors.HEADER, [])
    if match is None or endpoint is None or endpoint.does != "infer" or len(sizes) > 1:
        return None
    try:
        layout = binary_tensors.layout(sizes[0] if sizes else None, int(lengths[0]))
    except CallerError:
        return None
    echo = echo_of(headers)
    has_words = 0 < layout.header <= min(WORDS_LIMIT, layout.size - 1)
    has_text = layout.header == layout.size <= TEXT_LIMIT_BYTES
    name = next(iter(echo.values()), "")
    return Plan(
        match.names["model"],
        match.names.get("version", ""),
        layout,
        echo,
        name,
        has_words,
        has_text,
        layout.size <= ASIDE_BYTES,
        1 + layout.header // TEXT_UNIT_BYTES,
    )
