"""Objects that all client connections of a gateway share: caches, the fair queue, the read buffer."""

from __future__ import annotations

import asyncio
from typing import Final

from mmsup.gateway.infer.handler import InferHandler
from mmsup.gateway.infer.head_cache import HeadCache
from mmsup.gateway.infer.request_cache import RequestCache

READ_BUFFER_BYTES: Final = 1 << 16


class ConnectionContext:
    """One per gateway process."""

    def __init__(self, inference: InferHandler, loop: asyncio.AbstractEventLoop) -> None:
        self.inference = inference
        self.loop = loop
        self.fair_queue = inference.fair_queue
        self.head_cache = HeadCache(loop)
        self.request_cache = RequestCache()
        self.read_buffer = bytearray(READ_BUFFER_BYTES)
        """Where the kernel writes bytes of yet unknown meaning: consumed before the next read of any connection."""
        self.read_view = memoryview(self.read_buffer)
