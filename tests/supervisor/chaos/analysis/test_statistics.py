"""The statistics of a history, and their report."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from chaos_tale import poisoned, tale
from mmsup.supervisor.chaos.analysis.checker import Finding, check
from mmsup.supervisor.chaos.analysis.report import report_json, report_table, summary_rows
from mmsup.supervisor.chaos.analysis.statistics import RunStatistics, distribution, run_statistics
from mmsup.supervisor.chaos.analysis.timeline import Timeline, timeline_of
from mmsup.supervisor.chaos.observe.history import FaultFinished, FaultInjected, Invoke, Record, RequestOutcome


def told(records: list[Record]) -> tuple[Timeline, RunStatistics]:
    story = timeline_of(records)
    return story, run_statistics(story, check(records))


def test_the_statistics_of_the_example_history() -> None:
    _, found = told(tale())
    assert (found.sent, found.served, found.sent_healthy) == (28, 26, 19)
    assert (found.failed_healthy, found.failed_unexplained, found.failed_explained) == (0, 0, 2)
    assert (found.wrong, found.lost, found.unplanned, sum(found.left.values())) == (0, 0, 0, 0)
    assert found.detection.p50 == pytest.approx(0.005)
    assert found.in_flight.worst == pytest.approx(0.01)
    assert found.recovery.worst == pytest.approx(0.18)
    assert found.whole.worst == pytest.approx(0.98)
    assert found.baseline.count == 1
    assert found.during.p99 == pytest.approx(0.01)


def test_a_poison_and_a_keeper_have_rows_only_where_there_were_any() -> None:
    assert not any(
        ("keeper" in name and "killed" in name) or "poison" in name for name, _ in summary_rows(told(tale())[1])
    )
    killed: list[Record] = [
        FaultInjected(15.0, 9, "kill_keeper", ""),
        Invoke(14.99, 98, "good", 14.99, 8),
        RequestOutcome(15.02, 98, "reset"),
        FaultFinished(17.0, 9),
    ]
    _, found = told([*poisoned(), *killed])
    assert (found.poison_deaths, found.innocents) == ([2], 1)
    assert (found.broken_by_keepers, found.broken_by_gateways, found.failed_healthy) == (1, 0, 0)
    shown = dict(summary_rows(found))
    assert shown["keepers killed / connections broken with them"] == "1 / 1"
    assert shown["from a keeper's death until all models serve again: p50 / p99 / max"] == "2.00 s / 2.00 s / 2.00 s"
    assert shown["poison requests / deaths until refused, at most / bystanders served"] == "1 / 2 / 1"


def test_violations_show_in_the_statistics() -> None:
    records = [
        dataclasses.replace(each, kind="wrong") if isinstance(each, RequestOutcome) and each.id == 7 else each
        for each in tale()
    ]
    story, found = told(records)
    assert found.wrong == 1
    assert "- bytes: request 7 to good" in report_table(story, found)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0], (1.0, 1.0, 1.0)),
        ([3.0, 1.0, 2.0], (2.0, 3.0, 3.0)),
        ([float(each) for each in range(1, 101)], (50.0, 99.0, 100.0)),
        ([-0.001, 0.0], (0.0, 0.0, 0.0)),
    ],
)
def test_quantiles_are_observed_values(values: list[float], expected: tuple[float, float, float]) -> None:
    found = distribution(values)
    assert (found.p50, found.p99, found.worst) == expected
    assert found.count == len(values)


def test_the_quantiles_of_nothing_are_nan() -> None:
    found = distribution([])
    assert found.count == 0
    assert math.isnan(found.p99)


def test_the_table_is_markdown_and_names_the_run() -> None:
    text = report_table(*told(tale()))
    assert text.startswith("a server: 20 s with 3 models, seed 1, on a machine\n\n| | |\n|---|---|\n")
    assert "| failed on healthy models | **0** of 19 |" in text
    assert "| segv | F3 | 1 | 10.0 ms / 10.0 ms | 180.0 ms / 180.0 ms | 980.0 ms / 980.0 ms |" in text
    assert text.endswith("No findings.")


def test_many_findings_are_counted_and_the_first_are_shown() -> None:
    story, found = told(tale())
    many = dataclasses.replace(found, findings=[Finding("left", str(each)) for each in range(50)])
    text = report_table(story, many)
    assert "50 findings:" in text
    assert text.endswith("- and 30 more")


def test_the_report_in_json_has_the_same_statistics() -> None:
    story, found = told(tale())
    made = json.loads(json.dumps(report_json(story, found)))
    assert made["green"] is True
    assert made["sent"] == found.sent
    assert made["shaken"] == {"count": 0, "p50": None, "p99": None, "worst": None}
    assert made["classes"][0]["name"] == "segv"
    assert len(summary_rows(found)) == 21
