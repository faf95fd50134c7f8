"""A stage is measured or made up of others, held against its plan, and explained where it takes too long."""

from __future__ import annotations

import pytest
from inside.best import FEW, MANY, ONE, BestTimes
from inside.plan import STAGES
from inside.stage import ALLOWED, Stage, lines, markdown

TIMES = {("take", MANY): 8.0, ("take", ONE): 13.0, ("head", MANY): 1.0, ("send", MANY): 0.5, ("send", ONE): 6.0}


def test_a_stage_may_be_the_sum_of_some_without_others() -> None:
    stage = Stage("rest", plus=("take", "send"), minus=("head",))
    assert stage.us(TIMES, MANY) == 7.5
    assert Stage("sum", plus=("take", "send")).us(TIMES, ONE) == 19.0


def test_a_sum_of_which_a_part_is_not_known_is_not_known() -> None:
    assert Stage("rest", plus=("take",), minus=("head",)).us(TIMES, ONE) is None
    assert Stage("other", "other").us(TIMES, MANY) is None


def test_a_stage_is_judged_by_the_most_that_the_plan_says_on_this_machine() -> None:
    assert Stage("head", "head", plan_us=(0.1, 0.25)).ratio(TIMES, 2.0) == pytest.approx(2.0)
    assert Stage("head", "head").ratio(TIMES, 2.0) is None
    assert Stage("other", "other", plan_us=(1.0,)).ratio(TIMES, 2.0) is None


def test_only_what_takes_too_long_is_explained() -> None:
    slow, good = Stage("a", "take", plan_us=(2.0,), why="reasons"), Stage("b", "send", plan_us=(0.5,), why="reasons")
    assert [line[-1] for line in lines((slow, good), TIMES, 2.0)] == ["2.0 times: reasons", ""]


def test_what_takes_too_long_without_a_reason_is_seen() -> None:
    assert "not explained" in markdown((Stage("a", "take", plan_us=(1.0,)),), TIMES, 1.0)


def test_a_stage_without_a_plan_says_what_it_is() -> None:
    assert lines((Stage("a", "take", why="new"),), TIMES, 2.0) == [["a", "8.00", "-", "13.0", "-", "-", "new"]]


def test_a_stage_that_was_not_measured_has_no_line() -> None:
    assert lines((Stage("a", "other", why="new"),), TIMES, 2.0) == []


def test_a_plan_of_two_figures_is_a_span_by_the_pace_of_this_machine() -> None:
    assert lines((Stage("a", "take", plan_us=(5.0, 7.0)),), TIMES, 2.0)[0][4:6] == ["5.00-7.00", "10.0-14.0"]


def test_the_shortest_time_counts_by_request() -> None:
    best = BestTimes()
    for spent_s in (64e-6, 32e-6, 48e-6):
        best.note("take", MANY, spent_s)
    best.note("take", FEW, 16e-6)
    best.note("head", MANY, 2e-6, requests=1)
    assert {key: round(us, 9) for key, us in best.us.items()} == {
        ("take", MANY): 1.0,
        ("take", FEW): 2.0,
        ("head", MANY): 2.0,
    }


def test_a_call_is_timed_for_each_of_its_requests() -> None:
    best, calls = BestTimes(), list[int]()
    best.time("pack", lambda: calls.append(1), turn=FEW, requests=FEW)
    assert best.us["pack", FEW] > 0
    assert len(calls) == 25


def test_every_stage_of_the_plan_has_a_name_and_a_source() -> None:
    assert all(each.name and (each.key or each.plus) for each in STAGES)
    assert all(each.why or each.plan_us for each in STAGES)
    assert ALLOWED > 1
