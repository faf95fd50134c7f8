"""How this worker's runs go, and what follows for the next: its size, how long it is waited for, when answers go out.

Pure. Holds the batching of the model's configuration against what the last runs showed.
"""

from __future__ import annotations

from typing import Final

from mmsup.ipc.specs import ModelSpec
from mmsup.worker.batching.batch_policy_company import ConcurrencyEstimate
from mmsup.worker.batching.batcher import BatchRule
from mmsup.worker.batching.latency_objective import LatencyObjective

QUICK_RUNS_NS: Final = 500_000
"""Replies of quick runs wait for each other this long at most, to share a frame."""
MAX_DELAY_SHARE: Final = 0.25
"""Of the hang limit at most a request waits for company: a gateway that hears nothing for the whole limit complains."""


class BatchPolicy:
    """Told of each run; asked before the next."""

    def __init__(self, spec: ModelSpec, max_batch_size: int) -> None:
        batching = spec.batching
        self.runs = 0
        self._recent_run_ns = 0
        self._concurrency = ConcurrencyEstimate()
        self._max_rows = min(batching.max_rows or max_batch_size, max_batch_size)
        self._preferred = batching.preferred
        self._limit_ns = int(spec.hang_limit_s * MAX_DELAY_SHARE * 1e9)
        self._delay_ns = min(int(batching.delay_s * 1e9), self._limit_ns)
        self._objective: LatencyObjective | None = None
        if batching.objective_s and max_batch_size > 1:
            self._objective = LatencyObjective(int(batching.objective_s * 1e9), self._max_rows)
        self.can_batch = self._max_rows > 1
        """Whether requests ever share a run."""
        self.can_delay = self._max_rows > 1 and (self._delay_ns > 0 or self._objective is not None)
        """Whether a run may be waited for: then it matters who is here together."""
        self._no_delay_rule = BatchRule(self._max_rows, self._preferred)

    def rule(self) -> BatchRule:
        """How the next run is made."""
        if not self.can_delay:
            return self._no_delay_rule
        rows, delay_ns = self._max_rows, self._delay_ns
        if self._objective is not None:
            rows = self._objective.rows
            spare_ns = min(self._objective.delay_ns(self._recent_run_ns), self._limit_ns)
            delay_ns = min(delay_ns, spare_ns) if delay_ns else spare_ns
        return BatchRule(rows, self._preferred, delay_ns, self._concurrency.expected, self._recent_run_ns)

    def on_run(self, rows: int, took_ns: int) -> None:
        """A run of so many rows is over. A long one is remembered, and forgotten by halves."""
        self._recent_run_ns = max(took_ns, self._recent_run_ns // 2)
        self.runs += 1
        if self._objective is not None:
            self._objective.on_run(rows, took_ns)

    def on_concurrency(self, together: int) -> None:
        """So many requests were here before any of them was answered."""
        self._concurrency.record(together)

    def on_wait_timeout(self) -> None:
        """A run began without the company that it was kept for."""
        self._concurrency.reset()

    def has_time_for_run(self, spent_ns: int) -> bool:
        """Whether a turn that has lasted this long has time for a run; its first run it always has."""
        return spent_ns == 0 or spent_ns + self._recent_run_ns < QUICK_RUNS_NS
