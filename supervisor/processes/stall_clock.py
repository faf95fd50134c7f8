"""How long a process has gone without progress, of the time that it was given: from looks at its activity. Pure.

Progress is
    processor time     of the process and its descendants: at least PROGRESS_SHARE of one core over the limit
    a wait outside     for a disk or a socket, by which somebody else works for it, at the time of a look

Anything else (a lock, a pause, a stopped process) is a stall. The share is there because background threads burn a
little in a deadlocked process as well: a tick thread of 100 Hz and garbage collectors use 1 or 2 % of a core, and pools
of BLAS and OpenMP spin for at most some hundred milliseconds after their last work. Honest computation, alone on a
core, uses 100 %. A loop in a background thread looks alive, and ends with the run's own limit.

Time in which a thread was ready to run while others had the processors was not given to the process: it does not count
as a stall, and the share is of the rest. So a computation that gets a fiftieth of a core for a while goes on.

What lies before the first look has no counters. It counts as a stall, up to twice the time between two looks, if no
look shows anything else.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from mmsup.supervisor.linux.process_activity import NS, ProcessActivity

PROGRESS_SHARE: Final = 0.05
LOOKS: Final = 4
"""Looks within one limit."""


class StallClock:
    """Of one run at a time. Times are monotonic nanoseconds."""

    def __init__(self) -> None:
        self.since_ns = 0
        """The start of the run."""
        self._limit_ns = 0
        self._last: ProcessActivity | None = None
        self._parts: deque[tuple[int, int]] = deque()
        """Of the time since the last wait outside, at most the limit: nanoseconds given, processor time used."""

    @property
    def stalled_s(self) -> float:
        """How long it has been without progress; 0 while there was some within the limit."""
        given, used = self._sums()
        return given / NS if used < PROGRESS_SHARE * given else 0.0

    @property
    def has_looked(self) -> bool:
        return self._last is not None

    @property
    def interval_ns(self) -> int:
        return self._limit_ns // LOOKS

    def begin(self, since_ns: int, limit_s: float) -> None:
        """A run that began then; no change if it is the same one."""
        if (since_ns, round(limit_s * NS)) != (self.since_ns, self._limit_ns):
            self.since_ns, self._limit_ns, self._last = since_ns, round(limit_s * NS), None
            self._parts.clear()

    def add(self, seen: ProcessActivity) -> None:
        """One more look."""
        last, self._last = self._last, seen
        if seen.waits_outside:
            self._parts.clear()
        elif last is None:
            self._parts.append((min(max(seen.at_ns - self.since_ns, 0), 2 * self.interval_ns), 0))
        else:
            given_ns = max(seen.at_ns - last.at_ns - queued_ns(last, seen), 0)
            self._parts.append((given_ns, max(seen.cpu_ns - last.cpu_ns, 0)))
            while self._sums()[0] - self._parts[0][0] >= self._limit_ns:
                self._parts.popleft()

    def next_look_ns(self, now_ns: int) -> int:
        """When the limit may be reached at the earliest, or the next look is due."""
        left_ns = self._limit_ns - self._sums()[0]
        return now_ns + (min(left_ns, self.interval_ns) if left_ns > 0 else self.interval_ns) + 1

    def _sums(self) -> tuple[int, int]:
        return sum(given for given, _ in self._parts), sum(used for _, used in self._parts)


def queued_ns(last: ProcessActivity, seen: ProcessActivity) -> int:
    """How long the thread that was kept from the processor the longest was so, between two looks. The kernel's counter
    rises when the thread gets the processor; one that was ready at both looks has waited whenever it did not run."""
    window_ns, before = seen.at_ns - last.at_ns, dict(last.threads)
    longest_ns = 0
    for tid, now in seen.threads:
        then = before.get(tid)
        if then is None:
            continue
        queued = now.queued_ns - then.queued_ns
        if then.state == now.state == "R":
            queued = max(queued, window_ns - (now.run_ns - then.run_ns))
        longest_ns = max(longest_ns, queued)
    return min(longest_ns, window_ns)
