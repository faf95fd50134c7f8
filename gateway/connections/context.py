"""What all connections of a gateway use: what is known of heads and of requests, and memory to read into."""

from __future__ import annotations

import asyncio
from typing import Final

from mmsup.gateway.infer.handler import Inference
from mmsup.gateway.infer.head_cache import Plans
from mmsup.gateway.infer.request_cache import Orders

SCRATCH_BYTES: Final = 1 << 16


class Shared:
    """What all connections of a gateway use."""

    def __init__(self, inference: Inference, loop: asyncio.AbstractEventLoop) -> None:
        self.inference = inference
        self.loop = loop
        self.turns = inference.turns
        self.plans = Plans(loop)
        self.orders = Orders()
        self.scratch = bytearray(SCRATCH_BYTES)
        """What the kernel fills before it is known what it is: used up before the next read of any connection."""
        self.view = memoryview(self.scratch)
