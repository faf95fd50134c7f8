"""Adapts batch size and delay so that the p99 of queue and run together stays below a stated latency. Pure.

A request that comes at the worst moment waits for the whole current run and takes part in the next one. So a run may
take half of the objective, and what two runs leave of it may be spent on waiting for more requests. The batch size
follows measured runs by additive increase and multiplicative decrease:
- it grows after a window of full batches that all stayed well below their limit: it doubles until the first batch was
  too slow, then it grows by one;
- it shrinks by a quarter when two of a hundred runs were too slow. A p99 allows one.

Runs are measured, not the time in the queue: where more requests come than the model can serve, smaller batches would
only serve fewer.
"""

from __future__ import annotations

from typing import Final

WINDOW_RUNS: Final = 16
"""Full batches between two increases."""
HEADROOM: Final = 0.8
"""A size whose longest run takes more than this part of its limit is not increased."""
REVIEW_RUNS: Final = 100


class LatencyObjective:
    def __init__(self, objective_ns: int, max_rows: int) -> None:
        self._run_limit_ns = objective_ns // 2
        self._max_rows = max_rows
        self.rows = 1
        """The largest batch that is allowed now."""
        self._is_starting = True
        self._full_runs = 0
        self._longest_run_ns = 0
        self._reviewed_runs = 0
        self._slow_runs = 0

    def delay_ns(self, run_ns: int) -> int:
        """How long the oldest request may wait, if a run takes `run_ns`."""
        return max(2 * (self._run_limit_ns - run_ns), 0)

    def on_run(self, rows: int, run_ns: int) -> None:
        """Record a run and adapt the size."""
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
