"""Whether a ready worker should be replaced by a fresh one while it still serves, and why. Pure.

    rss      its memory is above the model's `recycle_memory`, and has grown since it was ready. Without that key: near
             its cap, after some time of service
    files    most of the file descriptors that it may have are open
    gpu_oom  requests keep failing for lack of device memory: what is free there is fragmented, or leaked

A worker that started above its limit does not leak, and a fresh one would be no smaller: so growth is required. One
that has failed requests for memory ever since it started has too little, as a fresh one would: so some time of service
is required.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

MIN_GROWTH: Final = 1.1
SOFT_FRACTION: Final = 0.9
"""Of the cap `memory`: the soft limit of a model without `recycle_memory`. What works honestly so near its cap is
replaced once in PERIOD_S at most."""
FILES_FRACTION: Final = 0.75
REFUSALS: Final = 5
PERIOD_S: Final = 300.0
"""Also the least time between two replacements for refusals, which bounds what a client can cause whose requests never
fit."""


@dataclass(frozen=True, slots=True)
class WorkerUsage:
    """What one worker uses. 0: unknown, or not measured."""

    memory_bytes: int = 0
    initial_bytes: int = 0
    """At the first measurement after it was ready."""
    cap_bytes: int = 0
    """Its cap; 0: it has none."""
    limited_bytes: int = 0
    """What the cap counts, where that is not `memory_bytes`: memory asked for, touched or not (RLIMIT_DATA)."""
    files: int = 0
    files_limit: int = 0
    refusals: int = 0
    """Requests refused for device memory within PERIOD_S."""
    served_s: float = 0.0


@dataclass(slots=True)
class RefusalCounter:
    """The last refusals of one worker, by the times at which its counter was seen to have risen."""

    count: int | None = None
    """As last read; None: never read."""
    _times_s: deque[float] = field(default_factory=lambda: deque[float](maxlen=REFUSALS))

    def record(self, count: int, now_s: float) -> int:
        """The number of refusals within PERIOD_S, REFUSALS at most. `count` is the worker's total; what it counted
        before the first reading is of unknown age and ignored."""
        fresh = count - (count if self.count is None else self.count)
        self.count = count
        self._times_s.extend([now_s] * min(fresh, REFUSALS))
        return sum(each > now_s - PERIOD_S for each in self._times_s)


@dataclass(slots=True)
class RecycleState:
    initial_bytes: int = 0
    """Its memory at the first measurement after it was ready; 0: unknown."""
    refusals: RefusalCounter = field(default_factory=RefusalCounter)
    not_before_s: float = 0.0
    """Monotonic; it is not recycled earlier."""


def recycle_reason(used: WorkerUsage, recycle_bytes: int | None) -> str:
    """`rss`, `files` or `gpu_oom`; empty to keep the worker."""
    least_bytes = used.initial_bytes * MIN_GROWTH
    if recycle_bytes is not None and used.memory_bytes > max(recycle_bytes, least_bytes):
        return "rss"
    counted_bytes = max(used.memory_bytes, used.limited_bytes)
    is_near_cap = used.cap_bytes and counted_bytes > used.cap_bytes * SOFT_FRACTION
    if recycle_bytes is None and is_near_cap and used.memory_bytes > least_bytes and used.served_s > PERIOD_S:
        return "rss"
    if used.files_limit and used.files >= used.files_limit * FILES_FRACTION:
        return "files"
    if used.refusals >= REFUSALS and used.served_s > PERIOD_S:
        return "gpu_oom"
    return ""
