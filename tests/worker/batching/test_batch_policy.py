"""Whether anyone is likely to come."""

from __future__ import annotations

from mmsup.worker.batching.batch_policy_company import MEMORY_RUNS, Company


def test_nobody_is_expected_before_the_first_run() -> None:
    assert Company().expected == 0


def test_the_largest_company_of_the_last_runs_is_expected_and_then_forgotten() -> None:
    company = Company()
    company.met(5)
    for _ in range(MEMORY_RUNS - 1):
        company.met(1)
        assert company.expected == 5
    company.met(1)
    assert company.expected == 1


def test_company_that_stayed_away_is_not_waited_for_again() -> None:
    company = Company()
    company.met(5)
    company.stayed_away()
    company.met(2)
    assert company.expected == 2
