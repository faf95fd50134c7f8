"""Recognises the requests of one connection by their bytes: the last head and the last known request come again."""

from __future__ import annotations

from mmsup.gateway.connections.context import ConnectionContext
from mmsup.gateway.connections.message_boundary import BLANK
from mmsup.gateway.http.host_policy import HostPolicy
from mmsup.gateway.infer.head_cache import ParsedHead
from mmsup.gateway.infer.known_in_flight import Recognised


class RequestRecognition:
    __slots__ = ("_context", "_head", "_hosts", "last", "last_text")

    def __init__(self, context: ConnectionContext, hosts: HostPolicy) -> None:
        self._context = context
        self._hosts = hosts
        self._head: ParsedHead | None = None
        """The last one, most likely the next one too."""
        self.last: Recognised | None = None
        """The last request of which all bytes but those of the tensors come again."""
        self.last_text = b""
        """These bytes."""

    def read_head(self, data: bytes | bytearray, view: memoryview, size: int) -> tuple[ParsedHead, int, str] | None:
        """The head at the start of the first `size` bytes, its end, and the client's own id of the request in it; None
        if aiohttp must serve it."""
        parsed = self._head
        if parsed is not None and size >= len(parsed.text) and data.startswith(parsed.text):
            return parsed, len(parsed.text), parsed.echo_id  # the only blank line of a head is at its end
        end = data.find(BLANK, 0, size) + len(BLANK)
        found = self._context.head_cache.get(bytes(view[:end])) if end >= len(BLANK) else None
        if found is None or not self._hosts.allows(found[0].host):
            return None  # aiohttp's side refuses a host
        parsed, echo_id = found
        if parsed.text:
            self._head = parsed
        return parsed, end, echo_id

    def find(self, data: bytes | bytearray, view: memoryview, size: int) -> Recognised | None:
        """The known request that these bytes begin with, whole, if its route is plain."""
        last = self.last
        if last is not None and size >= last.end and data.startswith(self.last_text) and last.known.route.is_plain:
            return last
        found = self.read_head(data, view, size)
        if found is None:
            return None
        head, start, echo_id = found
        if size < start + head.layout.size:
            return None
        recognised = self.look_up(head, echo_id, data, start)
        if recognised is not None and start == len(head.text) and recognised.is_constant:
            self.last, self.last_text = recognised, head.text + bytes(view[start : start + head.layout.header])
        return recognised

    def look_up(self, head: ParsedHead, echo_id: str, data: bytes | bytearray, start: int) -> Recognised | None:
        """The known request with this head, whose whole body begins there."""
        end, known_requests = start + head.layout.size, self._context.known_requests
        if head.has_cacheable_text:
            in_json = known_requests.find_json(head, data, start, end)
            if in_json is None:
                return None
            known, lists, json_id = in_json
            return Recognised(known, head.cost, start, end, lists, json_id, echo_id)
        if not head.has_cacheable_json:
            return None
        binary = known_requests.find_binary(head, bytes(data[start : start + head.layout.header]))
        return Recognised(binary[0], head.cost, start, end, (), binary[1], echo_id) if binary is not None else None
