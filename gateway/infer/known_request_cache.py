"""The cache of known requests.

The key of a request with binary tensors is its head and its JSON part; that of a JSON request is the text around its
numbers (protocol/json_template.py). Whether an id was cut out is part of the key: zero bytes may be a client's own. A
known request is valid as long as the model's version and metadata are the same.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final

from mmsup.gateway.dispatch.reply_validation import ValidatedSignature
from mmsup.gateway.dispatch.router import Router
from mmsup.gateway.infer.head_cache import ParsedHead
from mmsup.gateway.infer.known_request import JsonInputs, KnownRequest, PackedRequest
from mmsup.gateway.observability.request_counters import RequestCounters
from mmsup.gateway.protocol import json_template
from mmsup.ipc.bounded_cache import KEYS_LIMIT, BoundedCache
from mmsup.ipc.specs import INLINE_LIMIT_BYTES, Metadata
from mmsup.ipc.transport.codec import infer_record_parts

REQUESTS_LIMIT_BYTES: Final = 32 << 20
"""Of a gateway, with all that is kept to answer them."""


LAST_LIMIT: Final = 256
"""Models and versions of which the last JSON request is held beside, some KiB each."""


class KnownRequestCache:
    """One per gateway process. Without `may_pack` known requests are only parsed faster."""

    def __init__(self, router: Router, counters: RequestCounters, *, may_pack: bool = True) -> None:
        self._router = router
        self._counters = counters
        self._may_pack = may_pack
        self._requests: BoundedCache[Hashable, KnownRequest] = BoundedCache(
            KEYS_LIMIT, REQUESTS_LIMIT_BYTES, lambda _, known: known.size_bytes
        )
        self._last_json: BoundedCache[tuple[str, str], PackedRequest] = BoundedCache(LAST_LIMIT)
        """By model and requested version: the next one is most likely like it."""

    def get(self, key: Hashable, version: str, metadata: Metadata) -> KnownRequest | None:
        """The known request, if it was parsed for this version and metadata."""
        known = self._requests.recent.get(key) or self._requests.get(key)
        if known is None or known.parsed.metadata is not metadata or known.version != version:
            return None
        return known

    def find_binary(self, head: ParsedHead, words: bytes) -> tuple[PackedRequest, str] | None:
        """The packed request with these words before its tensors, if its route is plain, and its id."""
        json_id, text = json_template.cut_id(words)
        packed = self._plain((head, text, bool(json_id)))
        return (packed, json_id) if packed is not None else None

    def find_json(
        self, head: ParsedHead, data: bytes | bytearray, start: int, end: int
    ) -> tuple[PackedRequest, list[bytes | bytearray], str] | None:
        """The packed request of which the body, between `start` and `end`, is the text with other numbers; the lists of
        these, and its id."""
        last = self._last_json.recent.get((head.model, head.version))
        if last is not None and last.route.is_plain and isinstance(last.inputs, JsonInputs):
            before, after = last.inputs.before, last.inputs.after
            begin, stop = start + len(before), end - len(after)
            if begin < stop and before and data.startswith(before, start) and data.startswith(after, stop):
                return last, [data[begin:stop]], ""
        parts = json_template.split_template(bytes(data[start:end]))
        if parts is None:
            return None
        json_id, text = json_template.cut_id(parts[0][0])
        packed = self._plain((head.model, head.version, bool(json_id), text, *parts[0][1:]))
        if packed is None:
            return None
        if not json_id:
            self._last_json.add((head.model, head.version), packed)
        return packed, [b"[%b]" % each for each in parts[1]], json_id

    def _plain(self, key: Hashable) -> PackedRequest | None:
        known = self._requests.recent.get(key) or self._requests.get(key)
        packed = known.packed if known is not None else None
        return packed if packed is not None and packed.route.is_plain else None

    def put(self, key: Hashable, known: KnownRequest) -> None:
        self._requests.add(key, known)

    def pack(self, known: KnownRequest, head: ParsedHead, body: memoryview, signature: ValidatedSignature) -> None:
        """Called when a reply had the same form as the one before, inline: from now on it is expected. `head`, `body`:
        of that request."""
        parsed, response = known.parsed, known.response
        route = self._router.plain_route(head.model, head.version) if self._may_pack else None
        if route is None or route.spec.version != known.version or route.metadata is not parsed.metadata:
            return  # the default version has changed since the request came
        inputs = known.input_reader(head, body)
        if response is None or inputs is None or sum(inputs.sizes) > INLINE_LIMIT_BYTES:
            return  # larger ones are admitted by their bytes too
        sizes = [size or 0 for size in signature.sizes]  # none is None: the template was made from them
        timeout_ns = parsed.request.timeout_us * 1000
        known.packed = PackedRequest(
            known=known,
            head=head,
            model=head.model,
            served_by=(head.model, known.version),
            router=self._router,
            route=route,
            counters=self._counters.version_counters(head.model, known.version),
            inputs=inputs,
            record_parts=infer_record_parts(parsed.job.packed_signature(), inputs.sizes),
            deadline_ns=min(route.deadline_ns, timeout_ns) if timeout_ns else route.deadline_ns,
            inferences=parsed.inference_count,
            response=response,
            reply_signature=signature.packed,
            output_sizes=sizes,
            only_size=sizes[0] if len(sizes) == 1 else None,
        )
