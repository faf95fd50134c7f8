"""Models go to sleep for a load: who goes is recorded on both sides, and a load that must wait is asked again."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from mmsup.supervisor.capacity.admission import Claim, Pool, RoomRequest
from mmsup.supervisor.capacity.moves import SleepTier
from mmsup.supervisor.capacity.victims import Candidate
from mmsup.supervisor.eviction.evictor import RECHECK_S, ModelEvictor
from mmsup.supervisor.models.sleep_state import SleepReason

OLD = Candidate("old", 50, held_bytes=100, idle_s=30.0, use_rate=0.1, return_s=0.2)
NEW = Candidate("new", 50, held_bytes=100, idle_s=1.0, use_rate=0.2, return_s=0.2, kept_s=0.02)
LOAD = RoomRequest("load", 50, memory="host memory")


class Rig:
    """An evictor among candidates that a test names; it stands for all that the evictor acts upon."""

    def __init__(self, *candidates: Candidate) -> None:
        self.candidates = list(candidates)
        self.events: list[dict[str, Any]] = []
        self.asleep: list[tuple[str, str]] = []
        self.refuses: set[str] = set()
        self.changed: list[str] = []
        names = ["load", *(name for each in candidates for name in (each.name, *each.others))]
        self.models = {name: SimpleNamespace(name=name) for name in names}
        self.kept_bytes = 0
        self.evictor = ModelEvictor(self, self, self, self, self)  # type: ignore[arg-type]  # a double of all five

    def bytes(self, _pool: object, held_bytes: int) -> int:
        """The reserve."""
        assert held_bytes == sum(each.held_bytes for each in self.find(None))
        return self.kept_bytes

    def find(self, _held_bytes: object, but: str = "", *, on_device: bool = False) -> list[Candidate]:
        gone = {name for name, _ in self.asleep}
        return [each for each in self.candidates if each.name != but and each.name not in gone]

    def put_to_sleep(
        self, model: Any, reason: SleepReason, detail: str, _choice: str, numbers: dict[str, Any], *, tier: SleepTier
    ) -> str:
        assert reason is SleepReason.EVICTED
        if model.name in self.refuses:
            return "is pinned"
        self.asleep.append((model.name, detail))
        self.events.append({"event": "model_asleep", "model": model.name, **numbers})
        return ""

    def record(self, name: str, text: str, **fields: Any) -> None:
        self.events.append({"event": name, "text": text, **fields})

    def model(self, name: str) -> Any:
        return self.models.get(name)

    def mark_changed(self, name: str) -> None:
        self.changed.append(name)


def test_a_choice_is_recorded_with_its_numbers_on_both_sides() -> None:
    rig = Rig(OLD)
    assert rig.evictor.evictable_bytes(LOAD) == 100
    assert rig.evictor.make_room(LOAD, 60) == 100
    assert rig.asleep == [("old", "for load")]
    went, room = rig.events
    assert (went["for_model"], went["held_bytes"], went["use_rate"], went["return_s"]) == ("load", 100, 0.1, 0.2)
    assert (room["event"], room["model"], room["evicted"], room["missing_bytes"]) == ("room_made", "load", ["old"], 60)
    assert rig.evictor.counts == {"budget": 1, "pressure": 0}


def test_one_that_refuses_is_passed_over_and_not_counted() -> None:
    rig = Rig(OLD)
    rig.refuses.add("old")
    assert rig.evictor.make_room(LOAD, 60) == 0
    assert rig.events == []
    assert rig.evictor.counts["budget"] == 0


def test_models_that_share_a_worker_go_together() -> None:
    rig = Rig(replace(OLD, others=("older",)))
    assert rig.evictor.make_room(LOAD, 60) == 100
    assert [name for name, _ in rig.asleep] == ["old", "older"]
    assert rig.evictor.counts["budget"] == 2


@pytest.mark.parametrize(("kept_s", "is_asked_again"), [(0.0, False), (0.02, True), (5.0, True), (math.inf, False)])
def test_a_load_that_waits_until_others_may_go_is_asked_again(kept_s: float, *, is_asked_again: bool) -> None:
    rig = Rig(OLD, replace(NEW, kept_s=kept_s))

    async def run() -> None:
        rig.evictor.make_room(LOAD, 150)
        rig.evictor.make_room(LOAD, 150)
        assert rig.changed == []
        later = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(2 * RECHECK_S, later.set_result, None)
        await later

    asyncio.run(run())
    assert rig.changed == (["load"] if is_asked_again else [])
    rig.evictor.close()


def test_a_model_that_is_asked_all_the_time_goes_too_where_nothing_else_is_left() -> None:
    rig = Rig(replace(OLD, idle_s=0.0))
    assert rig.evictor.give_back(60, "the budget is passed", "budget") == 100


def test_under_pressure_any_class_goes_and_nobody_gets_room() -> None:
    rig = Rig(replace(OLD, priority=1), NEW)
    assert rig.evictor.give_back(60, "little is left", "pressure") == 100
    assert rig.asleep == [("old", "by others: little is left")]
    assert [each["event"] for each in rig.events] == ["model_asleep"]
    assert rig.evictor.counts == {"budget": 0, "pressure": 1}


@pytest.mark.parametrize(
    ("kept_bytes", "left_bytes", "gone"),
    [(0, 0, 0), (60, 0, 100), (60, 60, 0), (60, 59, 100), (80, 63, 0)],
)
def test_who_goes_for_the_next_loads_goes_for_none_of_them_and_nobody_does_where_much_is_left(
    kept_bytes: int, left_bytes: int, gone: int
) -> None:
    rig = Rig(OLD)
    rig.kept_bytes = kept_bytes
    pool = Pool("host memory", "--memory-budget", 1000, is_configured=True)
    assert rig.evictor.keep_reserve(LOAD, pool, left_bytes) == gone
    assert rig.asleep == ([("old", "by others: room for the next loads")] if gone else [])
    assert all((each["event"], each["for_model"]) == ("model_asleep", "") for each in rig.events)


@pytest.mark.parametrize(
    ("used_bytes", "has_room", "gone"),
    [(900, True, []), (901, True, ["old"]), (1000, True, ["old"]), (1001, False, [])],
)
def test_models_go_for_what_many_need_together_unless_there_is_no_room_even_then(
    used_bytes: int, has_room: bool, gone: list[str]
) -> None:
    rig = Rig(OLD)
    pool = Pool("host memory", "--memory-budget", 1000, is_configured=True, claims=(Claim("all", used_bytes),))
    assert rig.evictor.room_for(pool, 100, "room for the zygote of torch") is has_room
    assert [name for name, _ in rig.asleep] == gone
