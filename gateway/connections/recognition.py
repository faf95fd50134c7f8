"""Recognises the requests of one connection by their bytes: the last head and the last known request come again."""

from __future__ import annotations

from mmsup.gateway.connections.context import ConnectionContext
from mmsup.gateway.connections.message_boundary import BLANK
from mmsup.gateway.http.host_policy import HostPolicy
from mmsup.gateway.infer.head_cache import ParsedHead
from mmsup.gateway.infer.known_request import PackedRequest


class RequestRecognition:
    __slots__ = ("_context", "_head", "_hosts", "last_known")

    def __init__(self, context: ConnectionContext, hosts: HostPolicy) -> None:
        self._context = context
        self._hosts = hosts
        self._head: ParsedHead | None = None
        """The last one, most likely the next one too."""
        self.last_known: PackedRequest | None = None

    def read_head(self, data: bytes | bytearray, view: memoryview, size: int) -> tuple[ParsedHead | None, int]:
        """The head at the start of the first `size` bytes, if a fast connection serves it, and its end."""
        parsed = self._head
        if parsed is not None and size >= len(parsed.text) and data.startswith(parsed.text):
            return parsed, len(parsed.text)  # the only blank line of a head is at its end
        end = data.find(BLANK, 0, size) + len(BLANK)
        parsed = self._context.head_cache.get(bytes(view[:end])) if end >= len(BLANK) else None
        if parsed is None or not self._hosts.allows(parsed.host):
            return None, end  # aiohttp's side refuses a host
        if parsed.text:
            self._head = parsed
        return parsed, end

    def find_known(self, data: bytes | bytearray, view: memoryview, size: int) -> PackedRequest | None:
        """The known request that these bytes begin with, whole, if its route was plain."""
        head, end = self.read_head(data, view, size)
        if head is None or not head.has_cacheable_json or size < end + head.layout.size:
            return None
        words = bytes(view[end : end + head.layout.header])
        known = self._context.known_requests.get_packed((head, words))
        if known is not None:
            self.last_known = known
        return known
