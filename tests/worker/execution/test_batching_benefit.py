"""Large jobs are batched where that was quicker. By table, and by simulation of models that gain and that lose."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from mmsup.worker.execution.batching_benefit import MIN_RUNS, RETEST_EVERY, WINDOW_RUNS, BatchingBenefit

JOB_BYTES = 602_112
US = 1000
Cost = Callable[[int], float]
"""Nanoseconds that a run of so many jobs takes."""


def settled(batched_ns: float, single_ns: float, jobs: int = 16) -> BatchingBenefit:
    """One that has seen the first runs of both methods; times are of one job."""
    benefit = BatchingBenefit()
    for _ in range(MIN_RUNS):
        benefit.on_batch_run(JOB_BYTES, jobs, jobs * JOB_BYTES, round(batched_ns * jobs))
        benefit.on_single_runs(JOB_BYTES, JOB_BYTES, round(single_ns))
    return benefit


def test_both_methods_are_tested_before_one_is_chosen() -> None:
    benefit = BatchingBenefit()
    asked = []
    for _ in range(2 * MIN_RUNS):
        asked.append(count := benefit.single_runs(JOB_BYTES, 4))
        if count:
            benefit.on_single_runs(JOB_BYTES, count * JOB_BYTES, 100)
        benefit.on_batch_run(JOB_BYTES, 4, 4 * JOB_BYTES, 500)
    assert asked == [0, 0, 1, 1]
    assert benefit.single_runs(JOB_BYTES, 4) == 4


@pytest.mark.parametrize(
    ("batched_ns", "single_ns", "jobs", "usual", "tested"),
    [
        (100, 200, 16, 0, 1),
        (200, 100, 16, 16, 0),
        (100, 100, 16, 0, 1),
        (100, 200, 2, 0, 2),
        (200, 100, 2, 2, 0),
        (100, 200, 3, 0, 1),
    ],
)
def test_the_quicker_method_is_usual_and_the_slower_is_retested(
    batched_ns: float, single_ns: float, jobs: int, usual: int, tested: int
) -> None:
    benefit = settled(batched_ns, single_ns, jobs)
    asked = [benefit.single_runs(JOB_BYTES, jobs) for _ in range(2 * RETEST_EVERY)]
    assert asked == ([usual] * (RETEST_EVERY - 1) + [tested]) * 2


def test_one_slow_run_changes_nothing_and_a_lasting_change_is_followed() -> None:
    benefit = settled(100, 200)
    benefit.on_batch_run(JOB_BYTES, 16, 16 * JOB_BYTES, 1_000_000)
    assert benefit.single_runs(JOB_BYTES, 16) == 0
    for _ in range(WINDOW_RUNS):
        benefit.on_batch_run(JOB_BYTES, 16, 16 * JOB_BYTES, 16 * 300)
    assert benefit.single_runs(JOB_BYTES, 16) == 16


def test_jobs_of_other_sizes_and_batches_of_other_lengths_are_measured_separately() -> None:
    benefit = settled(200, 100, jobs=16)
    assert benefit.single_runs(JOB_BYTES, 16) == 16
    assert benefit.single_runs(JOB_BYTES * 16, 16) == 0, "never measured"
    for _ in range(MIN_RUNS):
        benefit.on_batch_run(JOB_BYTES, 4, 4 * JOB_BYTES, 4 * 50)
    assert benefit.single_runs(JOB_BYTES, 4) == 0, "a single run takes as long whatever the batch"


def test_the_tables_are_bounded_whatever_the_sizes() -> None:
    benefit = BatchingBenefit()
    chance = random.Random(5)
    for _ in range(5000):
        size, jobs = chance.randrange(1 << 17, 1 << 30), chance.randrange(2, 256)
        benefit.single_runs(size, jobs)
        benefit.on_single_runs(size, size, 1000)
        benefit.on_batch_run(size, jobs, size * jobs, 1000)
    seen = len(benefit._single) + len(benefit._batched) + len(benefit._runs)
    assert seen <= 13 + 2 * 13 * 8


def simulate(
    run: Cost, copy_ns: float, runs: int, benefit: BatchingBenefit, noise: float = 0.3
) -> tuple[float, float, float]:
    """The time that so many batches took: as chosen, all batched, all single. `copy_ns`: stacking one job."""
    chance = random.Random(7)

    def noisy(ns: float) -> int:
        return round(ns * (1 + chance.expovariate(1 / noise)))

    took = all_batched = all_single = 0.0
    for _ in range(runs):
        jobs = chance.randrange(2, 17)
        count = benefit.single_runs(JOB_BYTES, jobs)
        if count:
            ns = noisy(count * run(1))
            benefit.on_single_runs(JOB_BYTES, count * JOB_BYTES, ns)
            took += ns
        if rest := jobs - count:
            ns = noisy(run(rest) + rest * copy_ns)
            benefit.on_batch_run(JOB_BYTES, rest, rest * JOB_BYTES, ns)
            took += ns
        all_batched += noisy(run(jobs) + jobs * copy_ns)
        all_single += noisy(jobs * run(1))
    return took, all_batched, all_single


@pytest.mark.parametrize(
    ("first_ns", "more_ns"),
    [
        (40 * US, 40 * US),  # bound by memory: a batch is as long as its parts
        (20_000 * US, 1000 * US),  # sixteen together are not even twice as long as one
        (200 * US, 200 * US),
        (300 * US, 100 * US),
        (90 * US, 50 * US),  # about even
    ],
)
def test_the_choice_takes_hardly_longer_than_the_better_method(first_ns: float, more_ns: float) -> None:
    took, all_batched, all_single = simulate(
        lambda jobs: first_ns + (jobs - 1) * more_ns, copy_ns=44 * US, runs=3000, benefit=BatchingBenefit()
    )
    assert took < 1.05 * min(all_batched, all_single)


def test_a_change_of_the_model_is_followed_both_ways() -> None:
    benefit = BatchingBenefit()
    simulate(lambda jobs: jobs * 40.0 * US, 44 * US, 500, benefit)
    for first_us, more_us in ((2000, 50), (40, 40), (2000, 50)):
        simulate(lambda jobs, first=first_us, more=more_us: (first + (jobs - 1) * more) * US, 44 * US, 600, benefit)  # type: ignore[misc] # defaults bind the loop's values
        took, all_batched, all_single = simulate(
            lambda jobs, first=first_us, more=more_us: (first + (jobs - 1) * more) * US,  # type: ignore[misc] # as above
            44 * US,
            600,
            benefit,
        )
        assert took < 1.1 * min(all_batched, all_single)


def test_a_retest_takes_one_job_out_of_a_batch_that_gains() -> None:
    benefit = settled(1000, 15_000)
    longest = max(benefit.single_runs(JOB_BYTES, 16) for _ in range(10 * RETEST_EVERY))
    assert longest == 1
