"""Measures whether large requests run quicker as one stacked batch or one at a time, and chooses by that. Pure.

Stacking copies each input and each large output once more (16 inputs of 602 KB: 0.7 ms). A model that takes as long for
a batch as for its parts loses by that; one that gains is slow when its requests run singly. Which kind a model is shows
only in its runs, and for each size of request anew.

What is compared is the time for each byte of input: requests that may share a batch differ in their rows alone, so
their bytes count rows. The quickest of the last few runs stands for a method, since disturbances only add time. Every
64th time the slower method is tested again. To test single runs only one request is taken out of the batch, because
running all 16 one by one could miss a latency objective.
"""

from __future__ import annotations

from collections import deque
from typing import Final

ALWAYS_BATCH_BYTES: Final = 128 << 10
"""Requests with smaller inputs are always batched: the copies cost little, and so little could be gained."""
MIN_RUNS: Final = 2
"""Of each method, before they are compared: the first run of a size is often slow."""
RETEST_EVERY: Final = 64
WINDOW_RUNS: Final = 4


class BatchingBenefit:
    """Asked before, and notified after, each run of several large requests."""

    def __init__(self) -> None:
        self._single: dict[int, _RecentRuns] = {}
        """By the size of a request. Sizes and numbers are classed by powers of two, so all these tables are small."""
        self._batched: dict[tuple[int, int], _RecentRuns] = {}
        """By the size of a request and how many there were: a larger batch may gain more."""
        self._runs: dict[tuple[int, int], int] = {}

    def single_runs(self, job_bytes: int, jobs: int) -> int:
        """How many of these requests to run one at a time: none, the first, or all. The others form a batch."""
        key = _key(job_bytes, jobs)
        batched, single = self._batched.get(key), self._single.get(key[0])
        if batched is None or batched.is_new:
            return 0
        one = 1 if jobs > 2 else jobs  # two less one are no batch
        if single is None or single.is_new:
            return one
        runs = self._runs[key] = self._runs.get(key, 0) + 1
        is_retest = runs % RETEST_EVERY == 0
        if batched.best <= single.best:
            return one if is_retest else 0
        return 0 if is_retest else jobs

    def on_single_runs(self, job_bytes: int, size_bytes: int, took_ns: int) -> None:
        """Record requests of about `job_bytes` each, `size_bytes` together, that ran one at a time."""
        self._single.setdefault(_key(job_bytes, 1)[0], _RecentRuns()).add(size_bytes, took_ns)

    def on_batch_run(self, job_bytes: int, jobs: int, size_bytes: int, took_ns: int) -> None:
        """Record a batch of so many of them, stacking and splitting included."""
        self._batched.setdefault(_key(job_bytes, jobs), _RecentRuns()).add(size_bytes, took_ns)


class _RecentRuns:
    """Times of one method for requests of one size."""

    def __init__(self) -> None:
        self._ns_per_byte: deque[float] = deque(maxlen=WINDOW_RUNS)

    @property
    def is_new(self) -> bool:
        return len(self._ns_per_byte) < MIN_RUNS

    @property
    def best(self) -> float:
        return min(self._ns_per_byte)

    def add(self, size_bytes: int, took_ns: int) -> None:
        self._ns_per_byte.append(took_ns / size_bytes)


def _key(job_bytes: int, jobs: int) -> tuple[int, int]:
    return job_bytes.bit_length(), jobs.bit_length()
