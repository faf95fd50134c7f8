from __future__ import annotations

import random

import pytest

from mmsup.supervisor.instances.restart_policy import GiveUp, Retry, beside_others, is_tried_once_more, next_try
from mmsup.supervisor.processes.backoff import CEILING_S, HEALTHY_S, JITTER, Exit

RNG = random.Random(7)


class Middle(random.Random):
    """No jitter."""

    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2


def exits(*at_s: float, served_s: float = 30.0) -> list[Exit]:
    return [Exit(each, served_s) for each in at_s]


def test_the_first_exit_is_retried_at_once() -> None:
    assert next_try(exits(100.0), 100.0, RNG) == Retry(0.0)


def test_exits_far_apart_still_raise_the_delay() -> None:
    past = exits(0.0, 100.0, 200.0, 300.0)
    assert next_try(past, 300.0, Middle()) == Retry(2.0)


def test_a_healthy_worker_resets_the_delay() -> None:
    past = [*exits(0.0, 100.0, 200.0), Exit(1000.0, HEALTHY_S)]
    assert next_try(past, 1000.0, Middle()) == Retry(0.0)
    past.append(Exit(1010.0, 10.0))
    assert next_try(past, 1010.0, Middle()) == Retry(0.5)


@pytest.mark.parametrize(
    ("served_s", "instances", "is_awaited", "expected"),
    [
        ((), 1, True, True),
        ((), 1, False, False),
        ((0.0,), 1, True, False),
        ((30.0,), 1, True, True),
        ((0.0,), 2, True, True),
        ((0.0, 0.0), 2, True, False),
    ],
)
def test_a_load_whose_process_ends_is_tried_once_more_while_requests_wait_for_it(
    served_s: tuple[float, ...], instances: int, is_awaited: bool, expected: bool
) -> None:
    past = [Exit(float(number), each) for number, each in enumerate(served_s)]
    assert is_tried_once_more(past, instances, is_awaited=is_awaited) is expected


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_up_to_five_exits_in_a_minute_are_retried(count: int) -> None:
    assert isinstance(next_try(exits(*range(count), served_s=1.0), 5.0, RNG), Retry)


def test_a_sixth_exit_in_a_minute_gives_up() -> None:
    decision = next_try(exits(0, 10, 20, 30, 40, 59, served_s=1.0), 59.0, RNG)
    assert decision == GiveUp("crash_loop", "6 deaths in 60 s")


def test_a_model_that_serves_for_a_while_between_its_faults_is_not_given_up() -> None:
    past = exits(0, 11, 22, 33, 44, 55, served_s=10.0)
    assert isinstance(next_try(past, 55.0, RNG), Retry)
    assert isinstance(next_try(exits(0, 9, 18, 27, 36, 45, served_s=9.0), 45.0, RNG), GiveUp)


def test_lives_that_served_well_do_not_excuse_the_others() -> None:
    past = [Exit(0.0, 30.0), *exits(10, 11, 12, 13, 14, 15, served_s=0.5)]
    assert next_try(past, 15.0, RNG) == GiveUp("crash_loop", "6 deaths in 60 s")


def test_six_exits_in_more_than_a_minute_are_retried() -> None:
    assert isinstance(next_try(exits(0, 10, 20, 30, 40, 61, served_s=1.0), 61.0, RNG), Retry)


def test_five_failed_loads_in_a_row_give_up_however_slow() -> None:
    past = exits(0, 1000, 2000, 3000, served_s=0.0)
    assert isinstance(next_try(past, 3000.0, RNG), Retry)
    assert next_try([*past, Exit(4000.0, 0.0)], 4000.0, RNG) == GiveUp("model_failed", "5 loads failed in a row")


def test_a_load_that_succeeded_breaks_the_row() -> None:
    past = [*exits(0, 100, 200, 300, served_s=0.0), Exit(400.0, 1.0), Exit(500.0, 0.0)]
    assert isinstance(next_try(past, 500.0, RNG), Retry)


def test_a_probe_that_dies_soon_gives_up_at_once() -> None:
    past = [*exits(0, 1, 2, 3, 4, 5, served_s=0.1), Exit(320.0, 3.0, was_probe=True)]
    assert next_try(past, 320.0, RNG) == GiveUp("crash_loop", "the probe after giving up died too")


def test_a_probe_that_serves_a_minute_closes_the_breaker() -> None:
    past = [*exits(0, 1, 2, 3, 4, 5, served_s=0.1), Exit(400.0, 61.0, was_probe=True)]
    assert isinstance(next_try(past, 400.0, RNG), Retry)


def test_all_instances_dying_at_once_are_one_incident() -> None:
    eight = exits(*[100.0] * 8, served_s=1.0)
    assert next_try(eight, 100.0, Middle(), instances=8) == Retry(0.0)
    assert isinstance(next_try(eight, 100.0, Middle(), instances=1), GiveUp)


def test_no_history_gives_a_delay_outside_the_bounds() -> None:
    for seed in range(2000):
        rng = random.Random(seed)
        now_s, past = 0.0, []
        for _ in range(rng.randrange(1, 30)):
            now_s += rng.expovariate(1 / 50)
            past.append(Exit(now_s, rng.choice([0.0, 0.5, 30.0, 700.0]), was_probe=rng.random() < 0.1))
        decision = next_try(past, now_s, rng, instances=rng.randrange(1, 4))
        if isinstance(decision, Retry):
            assert 0.0 <= decision.after_s <= CEILING_S * (1 + JITTER)
        else:
            assert decision.code in ("crash_loop", "model_failed")
            assert decision.reason


def test_an_empty_history_is_a_bug_of_the_caller() -> None:
    with pytest.raises(AssertionError, match="nothing has exited"):
        next_try([], 0.0, RNG)


def test_a_fault_that_time_does_not_mend_is_not_retried() -> None:
    decision = next_try(exits(0, served_s=0.0), 0.0, RNG, load_code="config_mismatch")
    assert isinstance(decision, GiveUp)
    assert not decision.is_probed
    assert isinstance(next_try(exits(0, served_s=0.0), 0.0, RNG, load_code="load_failed"), Retry)


def test_a_load_that_ended_a_shared_process_is_not_tried_again_and_what_was_given_up_is_not_probed() -> None:
    retry, given_up = Retry(1.0), GiveUp("crash_loop", "6 deaths in 60 s")
    assert beside_others(retry, (), ended_in_load=True) == retry
    assert beside_others(given_up, (), ended_in_load=False) == given_up
    assert beside_others(retry, ("b/1",), ended_in_load=False) == retry
    for decision in (retry, given_up):
        found = beside_others(decision, ("b/1", "c/1"), ended_in_load=True)
        assert isinstance(found, GiveUp)
        assert (found.code, found.is_probed) == ("model_failed", False)
        assert "b/1, c/1" in found.reason
    found = beside_others(given_up, ("b/1",), ended_in_load=False)
    assert isinstance(found, GiveUp)
    assert (found.code, found.is_probed) == ("crash_loop", False)
