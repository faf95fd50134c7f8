"""How often a model is used, as decayed shares of seconds."""

from __future__ import annotations

import pytest

from mmsup.supervisor.models.use_rate import HALF_LIVES_S, UseRate


def used(*at_s: float) -> UseRate:
    rate = UseRate()
    for each in at_s:
        rate = rate.used(each)
    return rate


def test_it_grows_with_each_second_of_use_and_falls_without() -> None:
    once, twice = used(0.0), used(0.0, 2.0)
    assert 0 < once.at(0.0) < twice.at(2.0) < 1
    assert once.at(HALF_LIVES_S[0]) == pytest.approx(once.at(0.0) / 2)
    assert UseRate().at(100.0) == 0


def test_a_burst_within_a_second_is_one_use() -> None:
    assert used(5.0, 5.1, 5.2, 5.9) == used(5.0)


def test_one_that_is_used_all_the_time_has_nearly_the_rate_1() -> None:
    assert 0.97 < used(*map(float, range(300))).at(300.0) <= 1


def test_steady_use_is_remembered_longer_than_a_burst_of_popularity() -> None:
    steady = used(*(10.0 * each for each in range(360)))
    popular = used(*(3600.0 - 5 + each for each in range(5)))
    assert popular.at(3600.0) > steady.at(3600.0), "what everybody asks for now"
    assert popular.at(3900.0) < steady.at(3900.0)
