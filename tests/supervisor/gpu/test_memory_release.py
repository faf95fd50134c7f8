from __future__ import annotations

import pytest

from mmsup.supervisor.gpu.inventory import Gpu, Held
from mmsup.supervisor.gpu.memory_release import (
    KEPT_S,
    SLACK_BYTES,
    WAIT_S,
    Claim,
    Debt,
    Short,
    Sight,
    Wait,
    claim,
    is_over,
    verdict,
)

GIB = 1 << 30
DEAD, OTHER = 7, 8


def gpu(free: int, *held: tuple[int, int]) -> Gpu:
    """A device of 80 GiB; sizes in GiB."""
    return Gpu(0, "GPU-a", "H", 80 * GIB, free * GIB, held=tuple(Held(pid, size * GIB) for pid, size in held))


def debt(before: Gpu, said: int = 0, at_s: float = 0.0) -> Debt:
    return Debt(DEAD, claim(DEAD, before, said * GIB), at_s)


BEFORE = gpu(20, (DEAD, 50), (OTHER, 10))


def test_a_claim_is_what_nvml_shows_else_the_workers_own_word() -> None:
    assert claim(DEAD, BEFORE, 3) == Claim(50 * GIB, 80 * GIB)
    assert claim(DEAD, gpu(30), 50 * GIB) == Claim(50 * GIB, 80 * GIB)
    # It may stand there under a pid of another namespace: its word would count twice.
    assert claim(DEAD, gpu(20, (OTHER, 60)), 50 * GIB).counted_bytes == 80 * GIB


@pytest.mark.parametrize(
    ("now", "back"),
    [
        (gpu(20, (DEAD, 50), (OTHER, 10)), False),
        (gpu(20, (OTHER, 10)), False),  # in nobody's hands, and not free either
        (gpu(70, (OTHER, 10)), True),
        (gpu(80), True),
        (gpu(70), False),  # the other one has gone as well, and owes too
        (gpu(30, (OTHER, 50)), True),  # the other one has grown meanwhile
        (gpu(69, (OTHER, 10)), False),
    ],
)
def test_memory_is_back_when_all_of_it_is_accounted_for_again(now: Gpu, back: bool) -> None:
    owed = debt(BEFORE)
    assert is_over(owed, Sight(now, 1.0)) is back
    assert (verdict(None, [owed], Sight(now, 1.0), 1.0) is None) is back


def test_a_little_less_than_before_is_back_too() -> None:
    owed = debt(gpu(20, (DEAD, 50)))
    nearly = Gpu(0, "GPU-a", "H", 80 * GIB, 70 * GIB - SLACK_BYTES)
    assert is_over(owed, Sight(nearly, 1.0))


def test_what_was_seen_before_the_death_says_nothing() -> None:
    owed = debt(BEFORE, at_s=5.0)
    full = gpu(80)
    assert verdict(GIB, [owed], Sight(full, 4.9), 5.0) == Wait()
    assert not is_over(owed, Sight(full, 4.9))
    assert verdict(GIB, [owed], Sight(full, 5.0), 5.0) is None


@pytest.mark.parametrize(
    ("need", "now_s", "what"),
    [
        (20, 1.0, None),  # fits into what is free already
        (21, 1.0, Wait()),
        (None, 1.0, Wait()),
        (21, WAIT_S - 0.1, Wait()),
        (21, WAIT_S, Short(21 * GIB, 20 * GIB)),
        (20, WAIT_S, None),
        (None, WAIT_S, None),  # what nobody knows is tried
    ],
)
def test_a_load_waits_so_long_and_is_then_refused_with_figures(need: int | None, now_s: float, what: object) -> None:
    sight = Sight(gpu(20, (OTHER, 10)), now_s)
    assert verdict(need * GIB if need else None, [debt(BEFORE)], sight, now_s) == what


def test_of_two_debts_the_younger_one_is_still_waited_for() -> None:
    debts = [debt(BEFORE), debt(BEFORE, at_s=5.0)]
    assert verdict(30 * GIB, debts, Sight(gpu(20), WAIT_S), WAIT_S) == Wait()


def test_without_a_debt_nothing_is_weighed() -> None:
    assert verdict(90 * GIB, [], Sight(gpu(1), 1.0), 1.0) is None


def test_a_worker_that_nobody_had_seen_owes_nothing_once_somebody_has_looked() -> None:
    unseen = Debt(DEAD, Claim(), 5.0)
    assert verdict(None, [unseen], Sight(gpu(0), 4.0), 5.0) == Wait()
    assert verdict(None, [unseen], Sight(gpu(0), 5.1), 5.1) is None


def test_what_has_not_come_back_for_long_is_forgotten() -> None:
    owed = debt(BEFORE)
    assert not is_over(owed, Sight(gpu(20), KEPT_S))
    assert is_over(owed, Sight(gpu(20), KEPT_S + 1))
