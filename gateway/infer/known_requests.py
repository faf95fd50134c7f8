"""The cache of known requests.

The key of a request with binary tensors is its head and its JSON part; that of a JSON request is the text around its
numbers (protocol/json_template.py). A known request is valid as long as the model's version and metadata are the same.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final

from mmsup.gateway.dispatch.reply_validation import ValidatedSignature
from mmsup.gateway.dispatch.router import Router
from mmsup.gateway.infer.head_cache import ParsedHead
from mmsup.gateway.infer.known_request import KnownRequest, PackedRequest
from mmsup.gateway.observability.request_counters import RequestCounters
from mmsup.ipc.bounded_cache import KEYS_LIMIT, BoundedCache
from mmsup.ipc.specs import INLINE_LIMIT_BYTES, Metadata
from mmsup.ipc.transport.codec import RESULT_FIELDS, infer_record_parts

REQUESTS_LIMIT_BYTES: Final = 32 << 20
"""Of a gateway, with all that is kept to answer them."""


class KnownRequests:
    """One per gateway process. Without `may_pack` known requests are only parsed faster."""

    def __init__(self, router: Router, counters: RequestCounters, *, may_pack: bool = True) -> None:
        self._router = router
        self._counters = counters
        self._may_pack = may_pack
        self._requests: BoundedCache[Hashable, KnownRequest] = BoundedCache(
            KEYS_LIMIT, REQUESTS_LIMIT_BYTES, lambda _, known: known.size_bytes
        )

    def get(self, key: Hashable, version: str, metadata: Metadata) -> KnownRequest | None:
        """The known request, if it was parsed for this version and metadata."""
        known = self._requests.recent.get(key) or self._requests.get(key)
        if known is None or known.parsed.metadata is not metadata or known.version != version:
            return None
        return known

    def get_packed(self, key: Hashable) -> PackedRequest | None:
        """The packed request, if its route is plain."""
        known = self._requests.recent.get(key) or self._requests.get(key)
        packed = known.packed if known is not None else None
        return packed if packed is not None and packed.route.is_plain else None

    def put(self, key: Hashable, known: KnownRequest) -> None:
        self._requests.add(key, known)

    def pack(self, known: KnownRequest, head: ParsedHead, signature: ValidatedSignature) -> None:
        """Called when a reply had the same form as the one before, inline: from now on it is expected."""
        parsed, response = known.parsed, known.response
        sizes = [each.size for each in parsed.job.inputs]
        if not (self._may_pack and known.prefix and response and parsed.job.is_in_space):
            return
        route = self._router.plain_route(head.model, head.version)
        if route is None or route.metadata is not parsed.metadata or max(sizes, default=0) > INLINE_LIMIT_BYTES:
            return
        timeout_ns = parsed.request.timeout_us * 1000
        start = len(known.prefix) - head.json_end
        known.packed = PackedRequest(
            known=known,
            head=head,
            router=self._router,
            route=route,
            counters=self._counters.version_counters(head.model, known.version),
            prefix=known.prefix,
            size=len(known.prefix) + sum(sizes),
            spans=[(start + each.offset, start + each.offset + each.size) for each in parsed.job.inputs],
            record_parts=infer_record_parts(parsed.job.packed_signature(), sizes),
            deadline_ns=min(route.deadline_ns, timeout_ns) if timeout_ns else route.deadline_ns,
            inferences=parsed.inference_count,
            response=response,
            reply_signature=signature.packed,
            reply_types=[*RESULT_FIELDS, *(bytes for _ in signature.sizes)],
            output_sizes=[size or 0 for size in signature.sizes],  # none is None: the template was made from them
        )
