"""Long work of the event loop, done in slices between which requests are served."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Final, TypeVar

SLICE_NS: Final = 500_000
"""A request takes a third of that. Shorter ones cost more turns of the loop than they spare anybody."""
T = TypeVar("T")


async def in_slices(pieces: Iterable[T], take: Callable[[T], object]) -> None:
    """Give all pieces, which are made one by one, to `take`. The loop has a turn as soon as those since its last one
    have taken a slice."""
    end_ns = time.monotonic_ns() + SLICE_NS
    for piece in pieces:
        take(piece)
        if time.monotonic_ns() >= end_ns:
            await asyncio.sleep(0)
            end_ns = time.monotonic_ns() + SLICE_NS
