"""How many frames that cost us one connection may send."""

from __future__ import annotations

import pytest

from mmsup.gateway.http2.flood_limit import ALLOWANCES, FloodLimit


@pytest.mark.parametrize("kind", ALLOWANCES)
def test_an_allowance_is_spent_at_once_and_comes_back_with_time(kind: str) -> None:
    most, per_s = ALLOWANCES[kind]
    limit = FloodLimit(100.0)
    assert all(limit.spend(kind, 100.0) for _ in range(int(most)))
    assert not limit.spend(kind, 100.0)
    assert limit.spend(kind, 100.0 + 3 / per_s)


@pytest.mark.parametrize("kind", ALLOWANCES)
def test_no_more_than_the_allowance_is_saved_up(kind: str) -> None:
    most, _ = ALLOWANCES[kind]
    limit = FloodLimit(0.0)
    assert sum(limit.spend(kind, 1e6) for _ in range(int(most) + 10)) == int(most)


@pytest.mark.parametrize("kind", ALLOWANCES)
def test_who_keeps_to_the_rate_is_never_stopped(kind: str) -> None:
    _, per_s = ALLOWANCES[kind]
    limit = FloodLimit(0.0)
    assert all(limit.spend(kind, number / per_s) for number in range(2000))


def test_kinds_are_counted_apart() -> None:
    limit = FloodLimit(0.0)
    kinds = list(ALLOWANCES)
    while limit.spend(kinds[0], 0.0):
        pass
    assert all(limit.spend(kind, 0.0) for kind in kinds[1:])
