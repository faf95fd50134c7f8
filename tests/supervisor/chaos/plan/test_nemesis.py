"""The plan of a run: reproducible by its seed, even over the fault classes, with a cooldown for each victim."""

from __future__ import annotations

import itertools

import pytest

from mmsup.supervisor.chaos.plan.catalog import (
    FAULTS,
    FaultClass,
    ModelRole,
    hit_together,
    possible_faults,
    select_faults,
)
from mmsup.supervisor.chaos.plan.nemesis import DEATHS_BEFORE_RELOAD, NO_VICTIM, FaultWindow, PlannedFault, plan
from mmsup.supervisor.chaos.server.local_server import model_roles

WINDOW = FaultWindow(10.0, 110.0)
ALL = frozenset({"request", "worker", "server", "control", "client", "caps", "freezer", "manager", "grpcio"})


def planned(
    seed: int, faults: tuple[FaultClass, ...] = FAULTS, count: int = 21, window: FaultWindow = WINDOW
) -> list[PlannedFault]:
    return plan(seed, window, model_roles(count), faults)


def test_a_seed_gives_one_plan_and_another_seed_another() -> None:
    assert planned(5) == planned(5)
    assert planned(5) != planned(6)


@pytest.mark.parametrize("seed", range(20))
def test_faults_come_in_order_within_the_window_and_at_the_given_intervals(seed: int) -> None:
    faults = planned(seed)
    assert [each.number for each in faults] == list(range(1, len(faults) + 1))
    times = [each.at_s for each in faults]
    assert all(10.0 <= each < 110.0 for each in times)
    assert all(later - earlier >= 1.0 for earlier, later in itertools.pairwise(times))


@pytest.mark.parametrize("seed", range(20))
def test_a_victim_has_its_cooldown_and_the_role_that_the_fault_is_for(seed: int) -> None:
    models = model_roles(21)
    last: dict[str, PlannedFault] = {}
    for fault in planned(seed):
        if fault.fault_class.role is not None:
            assert models[fault.victim] == fault.fault_class.role
        before = last.get(fault.victim)
        assert before is None or fault.at_s >= before.at_s + before.fault_class.cooldown_s
        last.update(dict.fromkeys(hit_together(fault.victim, models), fault))


@pytest.mark.parametrize("seed", range(5))
def test_a_run_of_some_minutes_has_seen_every_class_and_none_much_more_often(seed: int) -> None:
    faults = planned(seed, window=FaultWindow(20.0, 240.0))
    counts = [sum(each.fault_class.name == fault.name for each in faults) for fault in FAULTS]
    assert min(counts) >= 1
    assert max(counts) - min(counts) <= 3


@pytest.mark.parametrize("seed", range(5))
def test_a_model_that_died_several_times_is_reloaded(seed: int) -> None:
    deaths: dict[str, int] = {}
    for fault in planned(seed, window=FaultWindow(0.0, 600.0)):
        deaths[fault.victim] = (
            deaths.get(fault.victim, 0) + bool(fault.fault_class.causes) * fault.fault_class.max_deaths
        )
        assert fault.reload_after == (deaths[fault.victim] >= DEATHS_BEFORE_RELOAD)
        if fault.reload_after:
            deaths[fault.victim] = 0


def test_healthy_models_get_no_faults() -> None:
    assert all(model_roles(21)[each.victim] != ModelRole.HEALTHY for each in planned(1) if each.victim != NO_VICTIM)


def test_without_faults_or_victims_there_is_no_plan() -> None:
    assert planned(1, ()) == []
    assert plan(1, WINDOW, {"a": ModelRole.HEALTHY}, select_faults("segv,oom")) == []


def test_faults_without_their_capability_are_left_out() -> None:
    by_http = possible_faults(FAULTS, frozenset({"request", "client"}))
    assert {each.method for each in by_http} == {"request", "client"}
    assert not any(each.requires for each in by_http)
    assert possible_faults(FAULTS, ALL) == FAULTS


def test_an_unknown_fault_is_named() -> None:
    with pytest.raises(ValueError, match="'sevg' is no fault"):
        select_faults("segv,sevg")
    assert [each.name for each in select_faults("oom, segv")] == ["oom", "segv"]


def test_the_keeper_is_killed_only_on_request() -> None:
    assert {each.name for each in FAULTS} - {each.name for each in select_faults("")} == {"kill_keeper"}
    assert [each.name for each in select_faults("kill_keeper")] == ["kill_keeper"]
    assert possible_faults(select_faults("kill_keeper"), ALL - {"manager"}) == ()


def test_the_names_of_faults_are_unique_and_their_rows_stand_in_the_fault_table() -> None:
    from faults.rows import ROWS

    assert len({each.name for each in FAULTS}) == len(FAULTS)
    assert {each.row for each in FAULTS} <= set(ROWS)


def test_models_come_in_every_role_by_turns() -> None:
    assert list(model_roles(21)) == [
        *("healthy_1", "crashy_1", "leaky_1", "hanging_1", "healthy_2", "crashy_2", "healthy_3", "changing_1"),
        *("grouped_1", "grouped_2", "on_demand_1", "on_demand_2", "movable_1", "movable_2"),
        *("streaming_1", "streaming_2", "sequenced_1", "sequenced_2"),
        *("calling_1", "ensemble_1", "called_1"),
    ]
    assert set(model_roles(21).values()) == set(ModelRole)


def test_models_are_added_that_named_faults_need() -> None:
    few = ["healthy_1", "crashy_1"]
    assert list(model_roles(2, {ModelRole.CRASHY})) == few
    assert list(model_roles(2, {ModelRole.CALLED})) == [*few, "calling_1", "ensemble_1", "called_1"]
    assert list(model_roles(2, {ModelRole.GROUPED})) == [*few, "grouped_1", "grouped_2"]
    assert model_roles(21, set(ModelRole)) == model_roles(21)


def test_models_that_share_a_process_or_memory_are_hit_together_and_all_others_alone() -> None:
    models = model_roles(21)
    assert hit_together("grouped_2", models) == ["grouped_1", "grouped_2"]
    assert hit_together("on_demand_1", models) == ["on_demand_1", "on_demand_2"]
    assert hit_together("called_1", models) == ["called_1", "ensemble_1"]
    assert hit_together("called_1", {"called_1": ModelRole.CALLED}) == ["called_1"]
    alone = [each for each in models if not each.startswith(("grouped", "on_demand", "called"))]
    assert [hit_together(each, models) for each in (*alone, NO_VICTIM)] == [[each] for each in (*alone, NO_VICTIM)]
