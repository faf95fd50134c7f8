"""Large jobs are gathered where that has paid. By table, and by simulation of models that gain and models that lose."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from mmsup.worker.execution.batching_benefit import MIN_RUNS, RETEST_EVERY, WINDOW_RUNS, BatchingBenefit

JOB_BYTES = 602_112
US = 1000
Cost = Callable[[int], float]
"""Nanoseconds that a run of so many jobs takes."""


def settled(gathered_ns: float, alone_ns: float, jobs: int = 16) -> BatchingBenefit:
    """One that has seen the first tries of both ways; times are of one job."""
    payoff = BatchingBenefit()
    for _ in range(MIN_RUNS):
        payoff.on_batch_run(JOB_BYTES, jobs, jobs * JOB_BYTES, round(gathered_ns * jobs))
        payoff.on_single_runs(JOB_BYTES, JOB_BYTES, round(alone_ns))
    return payoff


def test_both_ways_are_tried_before_one_is_chosen() -> None:
    payoff = BatchingBenefit()
    asked = []
    for _ in range(2 * MIN_RUNS):
        asked.append(count := payoff.alone(JOB_BYTES, 4))
        if count:
            payoff.on_single_runs(JOB_BYTES, count * JOB_BYTES, 100)
        payoff.on_batch_run(JOB_BYTES, 4, 4 * JOB_BYTES, 500)
    assert asked == [0, 0, 1, 1]
    assert payoff.alone(JOB_BYTES, 4) == 4


@pytest.mark.parametrize(
    ("gathered_ns", "alone_ns", "jobs", "usual", "tried"),
    [
        (100, 200, 16, 0, 1),
        (200, 100, 16, 16, 0),
        (100, 100, 16, 0, 1),
        (100, 200, 2, 0, 2),
        (200, 100, 2, 2, 0),
        (100, 200, 3, 0, 1),
    ],
)
def test_the_cheaper_way_is_usual_and_the_dearer_is_tried_now_and_then(
    gathered_ns: float, alone_ns: float, jobs: int, usual: int, tried: int
) -> None:
    payoff = settled(gathered_ns, alone_ns, jobs)
    asked = [payoff.alone(JOB_BYTES, jobs) for _ in range(2 * RETEST_EVERY)]
    assert asked == ([usual] * (RETEST_EVERY - 1) + [tried]) * 2


def test_one_slow_run_changes_nothing_and_a_lasting_change_is_followed() -> None:
    payoff = settled(100, 200)
    payoff.on_batch_run(JOB_BYTES, 16, 16 * JOB_BYTES, 1_000_000)
    assert payoff.alone(JOB_BYTES, 16) == 0
    for _ in range(WINDOW_RUNS):
        payoff.on_batch_run(JOB_BYTES, 16, 16 * JOB_BYTES, 16 * 300)
    assert payoff.alone(JOB_BYTES, 16) == 16


def test_jobs_of_other_sizes_and_batches_of_other_lengths_are_judged_for_themselves() -> None:
    payoff = settled(200, 100, jobs=16)
    assert payoff.alone(JOB_BYTES, 16) == 16
    assert payoff.alone(JOB_BYTES * 16, 16) == 0, "never seen"
    for _ in range(MIN_RUNS):
        payoff.on_batch_run(JOB_BYTES, 4, 4 * JOB_BYTES, 4 * 50)
    assert payoff.alone(JOB_BYTES, 4) == 0, "alone is as dear in whatever company"


def test_what_is_remembered_is_bounded_whatever_the_sizes() -> None:
    payoff = BatchingBenefit()
    chance = random.Random(5)
    for _ in range(5000):
        size, jobs = chance.randrange(1 << 17, 1 << 30), chance.randrange(2, 256)
        payoff.alone(size, jobs)
        payoff.on_single_runs(size, size, 1000)
        payoff.on_batch_run(size, jobs, size * jobs, 1000)
    seen = len(payoff._single) + len(payoff._batched) + len(payoff._runs)
    assert seen <= 13 + 2 * 13 * 8


def simulate(
    run: Cost, copy_ns: float, runs: int, payoff: BatchingBenefit, noise: float = 0.3
) -> tuple[float, float, float]:
    """The time that so many batches took: as decided, all gathered, all alone. `copy_ns`: gathering one job."""
    chance = random.Random(7)

    def noisy(ns: float) -> int:
        return round(ns * (1 + chance.expovariate(1 / noise)))

    took = all_gathered = all_alone = 0.0
    for _ in range(runs):
        jobs = chance.randrange(2, 17)
        count = payoff.alone(JOB_BYTES, jobs)
        if count:
            ns = noisy(count * run(1))
            payoff.on_single_runs(JOB_BYTES, count * JOB_BYTES, ns)
            took += ns
        if rest := jobs - count:
            ns = noisy(run(rest) + rest * copy_ns)
            payoff.on_batch_run(JOB_BYTES, rest, rest * JOB_BYTES, ns)
            took += ns
        all_gathered += noisy(run(jobs) + jobs * copy_ns)
        all_alone += noisy(jobs * run(1))
    return took, all_gathered, all_alone


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
def test_what_is_decided_takes_hardly_longer_than_the_better_way(first_ns: float, more_ns: float) -> None:
    took, all_gathered, all_alone = simulate(
        lambda jobs: first_ns + (jobs - 1) * more_ns, copy_ns=44 * US, runs=3000, payoff=BatchingBenefit()
    )
    assert took < 1.05 * min(all_gathered, all_alone)


def test_a_model_that_changes_is_followed_both_ways() -> None:
    payoff = BatchingBenefit()
    simulate(lambda jobs: jobs * 40.0 * US, 44 * US, 500, payoff)
    for first_us, more_us in ((2000, 50), (40, 40), (2000, 50)):
        simulate(lambda jobs, first=first_us, more=more_us: (first + (jobs - 1) * more) * US, 44 * US, 600, payoff)  # type: ignore[misc] # defaults bind the loop's values
        took, all_gathered, all_alone = simulate(
            lambda jobs, first=first_us, more=more_us: (first + (jobs - 1) * more) * US,  # type: ignore[misc] # as above
            44 * US,
            600,
            payoff,
        )
        assert took < 1.1 * min(all_gathered, all_alone)


def test_a_try_makes_a_batch_that_gains_longer_by_one_job_and_not_by_all() -> None:
    payoff = settled(1000, 15_000)
    longest = max(payoff.alone(JOB_BYTES, 16) for _ in range(10 * RETEST_EVERY))
    assert longest == 1
