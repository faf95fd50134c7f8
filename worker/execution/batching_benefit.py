"""Whether it pays to gather large jobs into one run, by what runs have taken. Pure.

A batch that is made here copies each input and each large output once more (16 inputs of 602 KB: 0.7 ms). A model that
spends as much on a batch as on its parts only loses by that; one that gains is slow when its jobs run alone. Which of
the two a model is, only its runs can tell, and for jobs of each size anew.

What is compared is the time of each way for each byte of input: jobs that may share a run are alike in all but their
rows, so their bytes count rows. Of the last few runs the quickest stands for a way: what disturbs a run adds to it.
The dearer way is tried again from time to time. A try of running alone takes one job out of the batch: all of them
would be as long a run as sixteen, which a model that holds a stated latency could not afford.
"""

from __future__ import annotations

from collections import deque
from typing import Final

ALWAYS_BATCH_BYTES: Final = 128 << 10
"""Jobs whose inputs have less are gathered unasked: the copies cost little, and so would be gained."""
MIN_RUNS: Final = 2
"""Of each way, before they are compared: the first run of a size is often slow."""
RETEST_EVERY: Final = 64
WINDOW_RUNS: Final = 4


class BatchingBenefit:
    """Asked before each run of several large jobs; told what it took."""

    def __init__(self) -> None:
        self._single: dict[int, _RecentRuns] = {}
        """By the size of a job. Sizes and numbers are in powers of two, so all these are few."""
        self._batched: dict[tuple[int, int], _RecentRuns] = {}
        """By the size of a job and how many there were: a larger batch may gain more."""
        self._runs: dict[tuple[int, int], int] = {}

    def alone(self, job_bytes: int, jobs: int) -> int:
        """How many of these jobs shall run one by one: none, the first, or all. The others are to be gathered."""
        key = _key(job_bytes, jobs)
        gathered, alone = self._batched.get(key), self._single.get(key[0])
        if gathered is None or gathered.is_new:
            return 0
        one = 1 if jobs > 2 else jobs  # two less one are no batch
        if alone is None or alone.is_new:
            return one
        runs = self._runs[key] = self._runs.get(key, 0) + 1
        is_try = runs % RETEST_EVERY == 0
        if gathered.best <= alone.best:
            return one if is_try else 0
        return 0 if is_try else jobs

    def on_single_runs(self, job_bytes: int, size: int, took_ns: int) -> None:
        """Jobs of about so many bytes each, of `size` bytes together, took so long one by one."""
        self._single.setdefault(_key(job_bytes, 1)[0], _RecentRuns()).add(size, took_ns)

    def on_batch_run(self, job_bytes: int, jobs: int, size: int, took_ns: int) -> None:
        """So many of them took so long as one run, gathering and sharing out included."""
        self._batched.setdefault(_key(job_bytes, jobs), _RecentRuns()).add(size, took_ns)


class _RecentRuns:
    """Times of one way to run jobs of one size."""

    def __init__(self) -> None:
        self._last: deque[float] = deque(maxlen=WINDOW_RUNS)

    @property
    def is_new(self) -> bool:
        return len(self._last) < MIN_RUNS

    @property
    def best(self) -> float:
        """Nanoseconds for a byte."""
        return min(self._last)

    def add(self, size: int, took_ns: int) -> None:
        self._last.append(took_ns / size)


def _key(job_bytes: int, jobs: int) -> tuple[int, int]:
    return job_bytes.bit_length(), jobs.bit_length()
