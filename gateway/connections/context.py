"""What all connections of a gateway use: what is known of heads and of requests, and memory to read into."""

from __future__ import annotations

import asyncio
from typing import Final

from mmsup.gateway.infer.handler import InferHandler
from mmsup.gateway.infer.head_cache import HeadCache
from mmsup.gateway.infer.request_cache import RequestCache

READ_BUFFER_BYTES: Final = 1 << 16


class ConnectionContext:
    """What all connections of a gateway use."""

    def __init__(self, inference: InferHandler, loop: asyncio.AbstractEventLoop) -> None:
        self.inference = inference
        self.loop = loop
        self.fair_queue = inference.fair_queue
        self.head_cache = HeadCache(loop)
        self.request_cache = RequestCache()
        self.read_buffer = bytearray(READ_BUFFER_BYTES)
        """What the kernel fills before it is known what it is: used up before the next read of any connection."""
        self.read_view = memoryview(self.read_buffer)
