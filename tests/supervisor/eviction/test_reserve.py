"""Room is left for the next loads only where models go for each load anyway, and are small against the budget."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest

from mmsup.supervisor.capacity.admission import Claim, Pool
from mmsup.supervisor.eviction.reserve import ASKED_S, LOADS, MOST_SHARE, reserve_bytes
from mmsup.supervisor.eviction.room_reserve import RoomReserve


@pytest.mark.parametrize(
    ("asked", "room", "budget", "expected"),
    [
        ([], 100, 1000, 0),
        ([10] * 40, 400, 1000, 0),  # all of them fit
        ([10] * 41, 400, 1000, 20),
        ([5, 15] * 30, 400, 1000, 20),
        ([10] * 41, 400, 320, 20),
        ([10] * 41, 400, 310, 0),  # more than a sixteenth
        ([300] * 4, 1000, 1000, 0),
    ],
)
def test_the_reserve_is_for_a_few_loads_of_the_usual_size(
    asked: list[int], room: int, budget: int, expected: int
) -> None:
    assert reserve_bytes(asked, room, budget) == expected


def test_models_that_fit_together_lose_nobody_and_others_a_small_part_of_the_budget() -> None:
    rng = random.Random(1)
    for _ in range(2000):
        asked = [rng.randrange(1, 50) for _ in range(rng.randrange(60))]
        budget = rng.randrange(1, 2000)
        room = rng.randrange(budget + 1)
        found = reserve_bytes(asked, room, budget)
        assert 0 <= found <= budget * MOST_SHARE
        if sum(asked) <= room:
            assert not found
        elif found:
            assert found >= LOADS * min(asked)


def test_models_count_that_were_asked_of_late_and_may_go_and_what_others_hold_is_no_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    last_use = {"a": 999.0, "b": 990.0, "old": 1000.0 - ASKED_S - 1, "pinned": 999.0, "gone": 999.0}
    models = {
        name: SimpleNamespace(name=name, sleep=SimpleNamespace(last_use_s=at_s))
        for name, at_s in last_use.items()
        if name != "gone"
    }
    model_set: Any = SimpleNamespace(models=models)
    candidates: Any = SimpleNamespace(is_evictable=lambda model: model.name != "pinned")
    reserve = RoomReserve(model_set, candidates, lambda: dict.fromkeys(last_use, 10))
    pool = Pool("host memory", "", 400, is_configured=True, claims=(Claim("a zygote", 381), Claim("a/1", 10)))
    assert reserve.bytes(pool, 10) == 20
    now[0] += 2
    assert reserve.bytes(Pool("host memory", "", 400, is_configured=True, claims=(Claim("a/1", 10),)), 10) == 0
    now[0] += 2
    assert reserve.bytes(Pool("host memory", "", 400, is_configured=False, claims=pool.claims), 10) == 0
