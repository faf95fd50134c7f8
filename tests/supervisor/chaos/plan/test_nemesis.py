"""The plan of a run: the same for the same seed, fair to all classes, and it hurts nobody who has not rested."""

from __future__ import annotations

import itertools

import pytest

from mmsup.supervisor.chaos.plan.catalog import FAULTS, Fault, Role, chosen, possible
from mmsup.supervisor.chaos.plan.nemesis import DEATHS_IN_A_ROW, HOUSE, Season, Strike, plan
from mmsup.supervisor.chaos.server.local_server import roles

SEASON = Season(10.0, 110.0)
ALL = frozenset({"request", "worker", "house", "control", "client", "caps", "freezer", "manager"})


def made(seed: int, faults: tuple[Fault, ...] = FAULTS, count: int = 8, season: Season = SEASON) -> list[Strike]:
    return plan(seed, season, roles(count), faults)


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
    models = roles(8)
    last: dict[str, Strike] = {}
    for strike in made(seed):
        if strike.fault.role is not None:
            assert models[strike.victim] == strike.fault.role
        before = last.get(strike.victim)
        assert before is None or strike.at_s >= before.at_s + before.fault.rest_s
        last[strike.victim] = strike


@pytest.mark.parametrize("seed", range(5))
def test_a_run_of_two_minutes_has_seen_every_class_and_none_much_more_often(seed: int) -> None:
    strikes = made(seed, season=Season(20.0, 200.0))
    counts = [sum(each.fault.name == fault.name for each in strikes) for fault in FAULTS]
    assert min(counts) >= 1
    assert max(counts) - min(counts) <= 3


@pytest.mark.parametrize("seed", range(5))
def test_a_model_that_died_a_few_times_is_loaded_anew(seed: int) -> None:
    deaths: dict[str, int] = {}
    for strike in made(seed, season=Season(0.0, 600.0)):
        deaths[strike.victim] = deaths.get(strike.victim, 0) + bool(strike.fault.cause) * strike.fault.deaths
        assert strike.forgive == (deaths[strike.victim] >= DEATHS_IN_A_ROW)
        if strike.forgive:
            deaths[strike.victim] = 0


def test_healthy_models_are_nobodys_victims() -> None:
    assert all(roles(8)[each.victim] != Role.HEALTHY for each in made(1) if each.victim != HOUSE)


def test_without_faults_or_victims_there_is_no_plan() -> None:
    assert made(1, ()) == []
    assert plan(1, SEASON, {"a": Role.HEALTHY}, chosen("segv,oom")) == []


def test_faults_without_the_means_are_left_out() -> None:
    by_http = possible(FAULTS, frozenset({"request", "client"}))
    assert {each.by for each in by_http} == {"request", "client"}
    assert not any(each.needs for each in by_http)
    assert possible(FAULTS, ALL) == FAULTS


def test_an_unknown_fault_is_named() -> None:
    with pytest.raises(ValueError, match="'sevg' is no fault"):
        chosen("segv,sevg")
    assert [each.name for each in chosen("oom, segv")] == ["oom", "segv"]


def test_the_keeper_is_killed_only_where_that_is_asked_for() -> None:
    assert {each.name for each in FAULTS} - {each.name for each in chosen("")} == {"kill_keeper"}
    assert [each.name for each in chosen("kill_keeper")] == ["kill_keeper"]
    assert possible(chosen("kill_keeper"), ALL - {"manager"}) == ()


def test_the_names_of_faults_are_unique_and_their_rows_stand_in_the_fault_table() -> None:
    from faults.rows import ROWS

    assert len({each.name for each in FAULTS}) == len(FAULTS)
    assert {each.row for each in FAULTS} <= set(ROWS)


def test_models_come_in_every_role_by_turns() -> None:
    assert list(roles(8)) == [
        *("healthy_1", "crashy_1", "leaky_1", "hanging_1", "healthy_2", "crashy_2", "healthy_3", "changing_1")
    ]
    assert set(roles(8).values()) == set(Role)
