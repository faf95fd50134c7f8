"""Targets are judged within one run, against the right server, and only by valid rows."""

from __future__ import annotations

import pytest
from row import Row
from targets import ABSOLUTE, BARE, BASE, BEST, BEST_OIP, ITSELF, MORE_IS_BETTER, TARGETS, Target, judge
from work import SCENES

OIP = {"mmsup", "triton", "kserve"}


def row(peer: str, run: str = "small32", **figures: float) -> Row:
    made = Row(peer, run, requests=100)
    for name, value in figures.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(("ours", "met"), [(3000.0, True), (2999.0, False)])
def test_a_rate_shall_be_so_many_times_the_best(ours: float, met: bool) -> None:
    rows = [row("mmsup", rate=ours), row("mosec", rate=1000.0), row("kserve", rate=10.0)]
    (said,) = judge(rows, OIP, [Target("small32", "rate", 3.0)])
    assert (said.met, said.whose, said.reference) == (met, "mosec", 1000.0)
    assert said.ratio == ours / 1000.0


@pytest.mark.parametrize(("ours", "met"), [(0.2, True), (0.21, False)])
def test_the_best_time_is_the_shortest(ours: float, met: bool) -> None:
    rows = [row("mmsup", p50_ms=ours), row("mosec", p50_ms=0.2), row("kserve", p50_ms=9.0)]
    (said,) = judge(rows, OIP, [Target("small32", "p50_ms", 1.0)])
    assert (said.met, said.whose) == (met, "mosec")


def test_the_best_of_a_protocol_is_not_the_best_of_all_and_never_ourselves() -> None:
    rows = [row("mmsup", rate=50.0), row("mosec", rate=40.0), row("triton", rate=10.0)]
    (oip,) = judge(rows, OIP, [Target("small32", "rate", 5.0, BEST_OIP)])
    (best,) = judge(rows, OIP, [Target("small32", "rate", 5.0, BEST)])
    assert (oip.whose, oip.met) == ("triton", True)
    assert (best.whose, best.met) == ("mosec", False)


@pytest.mark.parametrize("against", [BEST, BEST_OIP])
def test_neither_another_commit_nor_the_network_alone_is_a_peer(against: str) -> None:
    rows = [row("mmsup", rate=50.0), row(BASE, rate=99.0), row(BARE, rate=99.0), row("triton", rate=10.0)]
    (said,) = judge(rows, {*OIP, BASE, BARE}, [Target("small32", "rate", 5.0, against)])
    assert (said.whose, said.met) == ("triton", True)


def test_another_commit_by_name() -> None:
    rows = [row("mmsup", cpu_us=33.0), row(BASE, cpu_us=60.0), row("mosec", cpu_us=1.0)]
    (said,) = judge(rows, OIP, [Target("small32", "cpu_us", 0.55, BASE)])
    assert (said.whose, said.met) == (BASE, True)


def test_one_server_by_name() -> None:
    rows = [row("mmsup", cpu_us=25.0), row("mosec", cpu_us=76.0), row("kserve", cpu_us=20.0)]
    (said,) = judge(rows, OIP, [Target("small32", "cpu_us", 0.33, "mosec")])
    assert (said.whose, said.met) == ("mosec", True)


def test_itself_under_another_load() -> None:
    rows = [row("mmsup", "eight32", rate=84.0), row("mmsup", "small32", rate=100.0), row("mosec", "small32", rate=1e6)]
    (said,) = judge(rows, OIP, [Target("eight32", "rate", 0.85, ITSELF, "small32")])
    assert (said.whose, said.ratio, said.met) == ("mmsup", 0.84, False)


@pytest.mark.parametrize(("ours", "met"), [(1.3, True), (1.31, False)])
def test_an_absolute_bound_needs_no_peer(ours: float, met: bool) -> None:
    (said,) = judge([row("mmsup", p50_ms=ours)], OIP, [Target("small32", "p50_ms", 1.3, ABSOLUTE)])
    assert (said.met, said.ratio) == (met, None)


@pytest.mark.parametrize("against", [BEST, BEST_OIP, "mosec", ABSOLUTE])
def test_what_was_not_measured_is_neither_met_nor_missed(against: str) -> None:
    target = Target("small32", "rate", 3.0, against)
    for rows in ([], [row("mosec", rate=1.0), row("kserve", rate=1.0)], [row("mmsup", "mean1", rate=1.0)]):
        (said,) = judge(rows, OIP, [target])
        assert said.met is None


def test_wrong_answers_make_no_reference() -> None:
    liar = row("mosec", rate=1e9)
    liar.wrong = 1
    failing = row("litserve", rate=1e9)
    failing.failures = 1
    (said,) = judge(
        [row("mmsup", rate=3.0), row("kserve", rate=1.0), liar, failing], OIP, [Target("small32", "rate", 3.0)]
    )
    assert (said.whose, said.met) == ("kserve", True)


def test_every_target_names_a_load_and_a_figure_that_exist() -> None:
    runs = {run.key for scene in SCENES for run in scene.runs}
    for target in TARGETS:
        assert target.run in runs
        assert not target.run_of_reference or target.run_of_reference in runs
        assert isinstance(getattr(Row("mmsup", target.run), target.figure), float)
        assert target.wants_more == (target.figure in MORE_IS_BETTER)


def test_every_load_has_a_target() -> None:
    assert {target.run for target in TARGETS} == {run.key for scene in SCENES for run in scene.runs}
