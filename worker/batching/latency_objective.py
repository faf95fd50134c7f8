"""The adaptive mode: how large runs may be, and how long one is waited for, so that p99 of queue and run together stays
below a stated objective. Pure.

A request that comes at the worst moment waits for the run before it and takes part in the next. So a run may take half
of the objective, and what two runs leave of it may be spent on waiting for company. The size follows by additive
increase and multiplicative decrease from measured runs:
- it grows after a window of full runs that all stayed well below their half, twofold until one was too long, then by
  one;
- it shrinks by a quarter when two of a hundred runs were too long. One is what a p99 allows.

Runs are judged, not queues: where more is asked than the model can do, smaller runs would only do less.
"""

from __future__ import annotations

from typing import Final

WINDOW_RUNS: Final = 16
"""Full runs between two increases."""
HEADROOM: Final = 0.8
"""A size whose longest run takes more than this of its share is not increased."""
REVIEW_RUNS: Final = 100


class LatencyObjective:
    """The largest run that is allowed now."""

    def __init__(self, objective_ns: int, max_rows: int) -> None:
        self._run_limit_ns = objective_ns // 2
        self._max_rows = max_rows
        self.rows = 1
        self._is_starting = True
        self._full_runs = 0
        self._longest_run_ns = 0
        self._reviewed_runs = 0
        self._slow_runs = 0

    def delay_ns(self, run_ns: int) -> int:
        """How long the oldest may wait, when runs take so long."""
        return max(2 * (self._run_limit_ns - run_ns), 0)

    def on_run(self, rows: int, run_ns: int) -> None:
        """A run of so many rows took so long."""
        self._reviewed_runs += 1
        if run_ns > self._run_limit_ns:
            self._slow_runs += 1
            if self._slow_runs > 1:
                self._shrink(rows)
                return
        elif rows >= self.rows:
            self._full_runs += 1
            self._longest_run_ns = max(self._longest_run_ns, run_ns)
            if self._full_runs >= WINDOW_RUNS:
                self._grow()
        if self._reviewed_runs >= REVIEW_RUNS:
            self._reviewed_runs = self._slow_runs = 0

    def _grow(self) -> None:
        if self._longest_run_ns < HEADROOM * self._run_limit_ns:
            self.rows = min(self.rows * 2 if self._is_starting else self.rows + 1, self._max_rows)
        self._full_runs = self._longest_run_ns = 0

    def _shrink(self, rows: int) -> None:
        self._is_starting = False
        self.rows = max(min(self.rows, rows) * 3 // 4, 1)
        self._full_runs = self._longest_run_ns = self._reviewed_runs = self._slow_runs = 0
