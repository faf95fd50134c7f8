"""Long work of the event loop, done in slices between which requests are served."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Final, TypeVar

SLICE_NS: Final = 500_000
"""A request takes a third of that. Shorter ones cost more turns of the loop than they spare anybody."""
PAUSE_S: Final = 0.001
"""Between two slices. One turn of the loop would not do: a request has several, and would wait for a slice in each."""
T = TypeVar("T")


async def in_slices(pieces: Iterable[T], take: Callable[[T], object]) -> None:
    """Give all pieces, which are made one by one, to `take`. The loop is left to others as soon as those since the last
    time have taken a slice."""
    end_ns = time.monotonic_ns() + SLICE_NS
    for piece in pieces:
        take(piece)
        if time.monotonic_ns() >= end_ns:
            await asyncio.sleep(PAUSE_S)
            end_ns = time.monotonic_ns() + SLICE_NS
