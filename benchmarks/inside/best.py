"""Keeps the shortest time of each stage: other work on the machine can only lengthen it."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

MANY = 32
FEW = 8
ONE = 1
ROUNDS_PER_STAGE = (MANY, FEW, ONE)
"""Requests per loop iteration."""
HOT_REQUESTS, LEAST_CALLS = 200, 10
Times = dict[tuple[str, int], float]
"""Microseconds per request, by stage and requests per iteration."""


class BestTimes:
    """The shortest times."""

    def __init__(self) -> None:
        self.us: Times = {}

    def note(self, stage: str, turn: int, spent_s: float, requests: int = 0) -> None:
        """Record a duration for an iteration, or for so many requests of it."""
        us, key = spent_s * 1e6 / (requests or turn), (stage, turn)
        self.us[key] = min(us, self.us.get(key, us))

    def time(self, stage: str, call: Callable[[], object], *, turn: int = MANY, requests: int = 1) -> None:
        """Time a part that can be called alone, for so many requests per call, with warm caches."""
        calls = max(LEAST_CALLS, HOT_REQUESTS // requests)
        begin = time.perf_counter()
        for _ in range(calls):
            call()
        self.note(stage, turn, (time.perf_counter() - begin) / calls, requests)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Disable garbage collection during the block."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
