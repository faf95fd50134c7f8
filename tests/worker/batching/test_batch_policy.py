"""Whether anyone is likely to come."""

from __future__ import annotations

from mmsup.worker.batching.batch_policy_company import WINDOW_BATCHES, ConcurrencyEstimate


def test_nobody_is_expected_before_the_first_run() -> None:
    assert ConcurrencyEstimate().expected == 0


def test_the_largest_company_of_the_last_runs_is_expected_and_then_forgotten() -> None:
    company = ConcurrencyEstimate()
    company.record(5)
    for _ in range(WINDOW_BATCHES - 1):
        company.record(1)
        assert company.expected == 5
    company.record(1)
    assert company.expected == 1


def test_company_that_stayed_away_is_not_waited_for_again() -> None:
    company = ConcurrencyEstimate()
    company.record(5)
    company.reset()
    company.record(2)
    assert company.expected == 2
