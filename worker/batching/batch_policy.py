"""Derives the rule for the next batch (size, longest wait) from the model's configuration and from the last runs. Pure.

How many requests to wait for is estimated by concurrency, not by rate. A single caller that sends its next request as
soon as it has an answer sends many per second, and waiting for others would only slow it down. Requests that ran
together, and those that came while they ran, were all here before any of them was answered: so they are of different
callers, which are likely to come together again.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from mmsup.ipc.specs import ModelSpec
from mmsup.worker.batching.batcher import BatchRule
from mmsup.worker.batching.latency_objective import LatencyObjective

QUICK_RUNS_NS: Final = 500_000
"""Runs that end within this time of each other's start may share a reply frame."""
MAX_DELAY_SHARE: Final = 0.25
"""Of the hang limit, how long a request may wait for others at most: a gateway that gets no reply for the whole limit
reports the worker as stuck."""
WINDOW_BATCHES: Final = 8


class ConcurrencyEstimate:
    """The largest number of requests that were here together in the last WINDOW_BATCHES batches."""

    def __init__(self) -> None:
        self._recent: deque[int] = deque(maxlen=WINDOW_BATCHES)

    @property
    def expected(self) -> int:
        """Requests to be expected together; 0 before the first batch."""
        return max(self._recent, default=0)

    def record(self, together: int) -> None:
        """So many requests took part in a batch or came before it was answered."""
        self._recent.append(together)

    def reset(self) -> None:
        """Forget the past: a wait timed out before the expected number had come."""
        self._recent.clear()


class BatchPolicy:
    """Notified of each run; asked for the rule of the next."""

    def __init__(self, spec: ModelSpec, max_batch_size: int) -> None:
        batching = spec.batching
        self.runs = 0
        self._recent_run_ns = 0
        """The longest of the last runs; an older one counts half for each run since."""
        self.concurrency = ConcurrencyEstimate()
        self._max_rows = min(batching.max_rows or max_batch_size, max_batch_size)
        self._preferred = batching.preferred
        self._limit_ns = int(spec.hang_limit_s * MAX_DELAY_SHARE * 1e9)
        self._delay_ns = min(int(batching.delay_s * 1e9), self._limit_ns)
        self._objective: LatencyObjective | None = None
        if batching.objective_s and max_batch_size > 1:
            self._objective = LatencyObjective(int(batching.objective_s * 1e9), self._max_rows)
        self.can_batch = self._max_rows > 1
        self.can_delay = self._max_rows > 1 and (self._delay_ns > 0 or self._objective is not None)
        """Whether a batch may wait for more requests, so that the concurrency matters."""
        self._no_delay_rule = BatchRule(self._max_rows, self._preferred)

    def rule(self) -> BatchRule:
        if not self.can_delay:
            return self._no_delay_rule
        rows, delay_ns = self._max_rows, self._delay_ns
        if self._objective is not None:
            rows = self._objective.rows
            spare_ns = min(self._objective.delay_ns(self._recent_run_ns), self._limit_ns)
            delay_ns = min(delay_ns, spare_ns) if delay_ns else spare_ns
        return BatchRule(rows, self._preferred, delay_ns, self.concurrency.expected, self._recent_run_ns)

    def runs_singly(self, waiting: int) -> bool:
        """Whether so many requests that wait run one by one, and at once: there is nothing to batch or to wait for."""
        if not self.can_batch:
            return True
        return waiting == 1 and (not self.can_delay or self.concurrency.expected <= 1)

    def on_run(self, rows: int, took_ns: int) -> None:
        self._recent_run_ns = max(took_ns, self._recent_run_ns // 2)
        self.runs += 1
        if self._objective is not None:
            self._objective.on_run(rows, took_ns)

    def on_single_run(self, rows: int, took_ns: int, spent_ns: int) -> bool:
        """`on_run`, then `has_time_for_run`, in one piece."""
        recent_ns = self._recent_run_ns // 2
        self._recent_run_ns = recent_ns = took_ns if took_ns > recent_ns else recent_ns
        self.runs += 1
        if self._objective is not None:
            self._objective.on_run(rows, took_ns)
        return spent_ns + recent_ns < QUICK_RUNS_NS

    def has_time_for_run(self, spent_ns: int) -> bool:
        """Whether another run fits into a loop iteration that has run models for so long, before its replies go out."""
        return spent_ns + self._recent_run_ns < QUICK_RUNS_NS
