"""A worker whose replies take too long to read is found out; one on a slow machine is not."""

from __future__ import annotations

from mmsup.gateway.dispatch.reading_budget import FRAME_LIMIT_S, ReadingBudget


def frames(took_s: float, every_s: float, count: int) -> int:
    """How many of these frames are read before the budget is used up."""
    budget = ReadingBudget()
    for number in range(count):
        if not budget.spend(took_s, 1000 + number * every_s):
            return number
    return count


def test_a_worker_whose_replies_take_all_of_the_time_is_stopped_within_two_seconds() -> None:
    assert 10 <= frames(0.04, 0.04, 1000) * 0.04 / 0.1 <= 20


def test_a_busy_worker_is_not_stopped() -> None:
    assert frames(100e-6, 1e-3, 100_000) == 100_000


def test_a_machine_that_stands_still_for_minutes_is_nobodys_fault() -> None:
    budget = ReadingBudget()
    assert all(budget.spend(60.0, 1000 + number * 60.0) for number in range(100))
    assert not all(budget.spend(FRAME_LIMIT_S, 9000.0) for _ in range(100))
