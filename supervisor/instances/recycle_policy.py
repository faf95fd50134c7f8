"""Whether a worker is worn out, so that a fresh one should take its place while it still serves. Pure.

    rss     its memory is above the model's `recycle_memory`, and has grown since it was ready
    files   most of the descriptors that it may have are open
    gpu_oom requests were refused for want of device memory, again and again: what is free there is in pieces, or leaks

A worker that was born above its limit does not leak: a fresh one would be no smaller. So it must have grown besides.
One that refuses from its birth on has too little room, as a fresh one would have; so it must have served for a while.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

MIN_GROWTH: Final = 1.1
FILES_FRACTION: Final = 0.75
REFUSALS: Final = 5
PERIOD_S: Final = 300.0
"""Also the least time between two replacements for refusals: a client whose requests never fit brings about no more."""


@dataclass(frozen=True, slots=True)
class WorkerUsage:
    """What one worker holds. 0: not known, or not looked at."""

    memory_bytes: int = 0
    initial_bytes: int = 0
    """When it was looked at for the first time."""
    files: int = 0
    files_limit: int = 0
    refusals: int = 0
    """Of device memory, within PERIOD_S."""
    served_s: float = 0.0


@dataclass(slots=True)
class RefusalCounter:
    """The last of one worker's, by the times at which its count was seen to have risen."""

    count: int | None = None
    """At the last look; None: there was none yet."""
    _times_s: deque[float] = field(default_factory=lambda: deque[float](maxlen=REFUSALS))

    def record(self, count: int, now_s: float) -> int:
        """How many there were within PERIOD_S, REFUSALS at most; `count` is of all its life, and only what comes after
        the first look is known to be new."""
        fresh = count - (count if self.count is None else self.count)
        self.count = count
        self._times_s.extend([now_s] * min(fresh, REFUSALS))
        return sum(each > now_s - PERIOD_S for each in self._times_s)


def recycle_reason(reading: WorkerUsage, recycle_bytes: int | None) -> str:
    """`rss`, `files` or `gpu_oom`; empty while it is good."""
    least_bytes = reading.initial_bytes * MIN_GROWTH
    if recycle_bytes is not None and reading.memory_bytes > max(recycle_bytes, least_bytes):
        return "rss"
    if reading.files_limit and reading.files >= reading.files_limit * FILES_FRACTION:
        return "files"
    if reading.refusals >= REFUSALS and reading.served_s > PERIOD_S:
        return "gpu_oom"
    return ""
