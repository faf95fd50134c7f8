from __future__ import annotations

import random

from mmsup.supervisor.processes.backoff import (
    CEILING_S,
    JITTER,
    SERVER_CEILING_S,
    SERVER_HEALTHY_S,
    Exit,
    delay_s,
    server_delay_s,
)

RNG = random.Random(7)


class Middle(random.Random):
    """No jitter."""

    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2


def exits(*at_s: float, served_s: float) -> list[Exit]:
    return [Exit(each, served_s) for each in at_s]


def test_the_delays_are_zero_half_one_two_and_end_at_sixty() -> None:
    curve = [delay_s(step, Middle()) for step in range(12)]
    assert curve == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0, 60.0]


def test_a_long_history_does_not_overflow_the_delay() -> None:
    assert delay_s(10**6, Middle()) == CEILING_S


def test_jitter_stays_within_its_bounds_and_is_there() -> None:
    drawn = [delay_s(3, RNG) for _ in range(500)]
    assert all(2 * (1 - JITTER) <= each <= 2 * (1 + JITTER) for each in drawn)
    assert len(set(drawn)) > 400


def test_a_server_process_that_served_for_a_while_is_restarted_at_once() -> None:
    assert server_delay_s(exits(0.0, 20.0, 40.0, served_s=SERVER_HEALTHY_S), Middle()) == 0.0


def test_a_server_process_that_exits_at_once_is_restarted_ever_later_and_never_given_up() -> None:
    past = exits(*range(20), served_s=0.1)
    curve = [server_delay_s(past[: count + 1], Middle()) for count in range(20)]
    assert curve[:5] == [0.0, 0.5, 1.0, 2.0, 4.0]
    assert set(curve[5:]) == {SERVER_CEILING_S}
