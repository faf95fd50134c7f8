"""The plan of a run: the same for the same seed, fair to all classes, and it hurts nobody who has not rested."""

from __future__ import annotations

import itertools

import pytest

from mmsup.supervisor.chaos.plan.catalog import FAULTS, FaultClass, ModelRole, possible_faults, select_faults
from mmsup.supervisor.chaos.plan.nemesis import DEATHS_BEFORE_RELOAD, NO_VICTIM, FaultWindow, PlannedFault, plan
from mmsup.supervisor.chaos.server.local_server import model_roles

SEASON = FaultWindow(10.0, 110.0)
ALL = frozenset({"request", "worker", "house", "control", "client", "caps", "freezer", "manager"})


def made(
    seed: int, faults: tuple[FaultClass, ...] = FAULTS, count: int = 8, season: FaultWindow = SEASON
) -> list[PlannedFault]:
    return plan(seed, season, model_roles(count), faults)


def test_a_seed_gives_one_plan_and_another_seed_another() -> None:
    assert made(5) == made(5)
    assert made(5) != made(6)


@pytest.mark.parametrize("seed", range(20))
def test_strikes_come_in_order_within_the_season_and_at_the_distances_that_were_asked_for(seed: int) -> None:
    strikes = made(seed)
    assert [each.number for each in strikes] == list(range(1, len(strikes) + 1))
    times = [each.at_s for each in strikes]
    assert all(10.0 <= each < 110.0 for each in times)
    assert all(later - earlier >= 1.0 for earlier, later in itertools.pairwise(times))


@pytest.mark.parametrize("seed", range(20))
def test_a_victim_has_its_rest_and_is_of_the_role_that_the_fault_is_for(seed: int) -> None:
    models = model_roles(8)
    last: dict[str, PlannedFault] = {}
    for strike in made(seed):
        if strike.fault.role is not None:
            assert models[strike.victim] == strike.fault.role
        before = last.get(strike.victim)
        assert before is None or strike.at_s >= before.at_s + before.fault.cooldown_s
        last[strike.victim] = strike


@pytest.mark.parametrize("seed", range(5))
def test_a_run_of_two_minutes_has_seen_every_class_and_none_much_more_often(seed: int) -> None:
    strikes = made(seed, season=FaultWindow(20.0, 200.0))
    counts = [sum(each.fault.name == fault.name for each in strikes) for fault in FAULTS]
    assert min(counts) >= 1
    assert max(counts) - min(counts) <= 3


@pytest.mark.parametrize("seed", range(5))
def test_a_model_that_died_a_few_times_is_loaded_anew(seed: int) -> None:
    deaths: dict[str, int] = {}
    for strike in made(seed, season=FaultWindow(0.0, 600.0)):
        deaths[strike.victim] = deaths.get(strike.victim, 0) + bool(strike.fault.causes) * strike.fault.max_deaths
        assert strike.reload_after == (deaths[strike.victim] >= DEATHS_BEFORE_RELOAD)
        if strike.reload_after:
            deaths[strike.victim] = 0


def test_healthy_models_are_nobodys_victims() -> None:
    assert all(model_roles(8)[each.victim] != ModelRole.HEALTHY for each in made(1) if each.victim != NO_VICTIM)


def test_without_faults_or_victims_there_is_no_plan() -> None:
    assert made(1, ()) == []
    assert plan(1, SEASON, {"a": ModelRole.HEALTHY}, select_faults("segv,oom")) == []


def test_faults_without_the_means_are_left_out() -> None:
    by_http = possible_faults(FAULTS, frozenset({"request", "client"}))
    assert {each.method for each in by_http} == {"request", "client"}
    assert not any(each.requires for each in by_http)
    assert possible_faults(FAULTS, ALL) == FAULTS


def test_an_unknown_fault_is_named() -> None:
    with pytest.raises(ValueError, match="'sevg' is no fault"):
        select_faults("segv,sevg")
    assert [each.name for each in select_faults("oom, segv")] == ["oom", "segv"]


def test_the_keeper_is_killed_only_where_that_is_asked_for() -> None:
    assert {each.name for each in FAULTS} - {each.name for each in select_faults("")} == {"kill_keeper"}
    assert [each.name for each in select_faults("kill_keeper")] == ["kill_keeper"]
    assert possible_faults(select_faults("kill_keeper"), ALL - {"manager"}) == ()


def test_the_names_of_faults_are_unique_and_their_rows_stand_in_the_fault_table() -> None:
    from faults.rows import ROWS

    assert len({each.name for each in FAULTS}) == len(FAULTS)
    assert {each.row for each in FAULTS} <= set(ROWS)


def test_models_come_in_every_role_by_turns() -> None:
    assert list(model_roles(8)) == [
        *("healthy_1", "crashy_1", "leaky_1", "hanging_1", "healthy_2", "crashy_2", "healthy_3", "changing_1")
    ]
    assert set(model_roles(8).values()) == set(ModelRole)
