"""Objects that all client connections of a gateway share: caches, the fair queue, the read buffer."""

from __future__ import annotations

import asyncio
from typing import Final

from mmsup.gateway.infer.fast_handler import Deliver, FastInfer, LocalInfer
from mmsup.gateway.infer.handler import InferHandler
from mmsup.gateway.infer.head_cache import HeadCache, ParsedHead
from mmsup.gateway.infer.known_request_cache import KnownRequestCache

READ_BUFFER_BYTES: Final = 1 << 16


class ConnectionContext:
    """One per gateway process. Tests compare what clients get with and without `use_known_requests`."""

    def __init__(
        self, inference: InferHandler, loop: asyncio.AbstractEventLoop, *, use_known_requests: bool = True
    ) -> None:
        self.inference = inference
        self.loop = loop
        self.fair_queue = inference.fair_queue
        self.head_cache = HeadCache(loop)
        self.known_requests = KnownRequestCache(inference.router, inference.counters, may_pack=use_known_requests)
        self.read_buffer = bytearray(READ_BUFFER_BYTES)
        """Where the kernel writes bytes of yet unknown meaning: consumed before the next read of any connection."""
        self.read_view = memoryview(self.read_buffer)

    def make_infer(self, head: ParsedHead, echo_id: str, deliver: Deliver, *, is_local: bool) -> FastInfer:
        return (LocalInfer if is_local else FastInfer)(self.inference, self.known_requests, head, echo_id, deliver)
