"""The shortest time of each stage: what else the machine did can only lengthen one."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

MANY = 32
FEW = 8
ONE = 1
ROUNDS_PER_STAGE = (MANY, FEW, ONE)
"""Requests a turn."""
HOT_REQUESTS, LEAST_CALLS = 200, 10
Times = dict[tuple[str, int], float]
"""Microseconds a request, by stage and requests a turn."""


class BestTimes:
    """Of all that was measured."""

    def __init__(self) -> None:
        self.us: Times = {}

    def note(self, stage: str, turn: int, spent_s: float, requests: int = 0) -> None:
        """So long for a whole turn, or for so many requests of it."""
        us, key = spent_s * 1e6 / (requests or turn), (stage, turn)
        self.us[key] = min(us, self.us.get(key, us))

    def time(self, stage: str, call: Callable[[], object], *, turn: int = MANY, requests: int = 1) -> None:
        """A part that can be run alone, for so many requests a call. Its caches are warm: the least it can take."""
        calls = max(LEAST_CALLS, HOT_REQUESTS // requests)
        begin = time.perf_counter()
        for _ in range(calls):
            call()
        self.note(stage, turn, (time.perf_counter() - begin) / calls, requests)


@contextmanager
def undisturbed() -> Iterator[None]:
    """No garbage collection within."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
