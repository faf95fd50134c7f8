"""Formats the statistics of a run as Markdown tables and as JSON. Pure."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any, Final

from mmsup.supervisor.chaos.analysis.statistics import Distribution, FaultStatistics, RunStatistics
from mmsup.supervisor.chaos.analysis.timeline import Timeline

MAX_FINDINGS: Final = 20


def report_table(timeline: Timeline, found: RunStatistics) -> str:
    """A table of the run, a table by fault class, and the findings."""
    run = timeline.run
    lines = [
        f"{run.server}: {run.seconds:.0f} s with {len(run.models)} models, seed {run.seed}, on {run.machine}",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in summary_rows(found)),
        "",
        "| fault (p50 / max) | row | injected | in flight answered | recovery without load and backoff | recovery |",
        "|---|---|---|---|---|---|",
        *(_fault_row(each) for each in found.classes),
    ]
    return "\n".join(lines + _finding_lines(found))


def summary_rows(found: RunStatistics) -> list[tuple[str, str]]:
    """Name and value of each row of the first table."""
    injected = sum(each.injected for each in found.classes)
    leaks = ", ".join(f"{count} {name}" for name, count in found.left.items())
    return [
        ("faults injected / skipped, their victim still being down", f"{injected} / {found.passed_over}"),
        ("classes of faults", str(len(found.classes))),
        ("requests sent / served", f"{found.sent:,} / {found.served:,}"),
        ("served as known requests", f"{found.served_known:,}"),
        ("failed on healthy models", f"**{found.failed_healthy}** of {found.sent_healthy:,}"),
        ("failed on faulty models, not explained by a fault", f"**{found.failed_unexplained}**"),
        ("failed on faulty models, each with its fault", f"{found.failed_explained}"),
        ("connections broken with the gateway or gRPC front that held them", f"{found.broken_by_gateways}"),
        *_keeper_rows(found),
        *_poison_rows(found),
        ("wrong or crossed bytes", f"**{found.wrong}**"),
        ("requests without an outcome, or with two", f"**{found.lost}**"),
        ("leaked", f"**{sum(found.left.values())}** ({leaks})"),
        ("unplanned restarts of controller or gateway", f"**{found.unplanned}**"),
        ("from a death to its event: p50 / p99 / max", _p50_p99_max(found.detection)),
        ("from a death to the answers of requests in flight: p50 / p99 / max", _p50_p99_max(found.in_flight)),
        ("recovery, without load time and backoff: p50 / p99 / max", _p50_p99_max(found.recovery)),
        ("the same while a fault hit controller or gateway as well", _p50_p99_max(found.shaken)),
        ("recovery with load time and backoff: p50 / p99 / max", _p50_p99_max(found.whole)),
        ("latency of healthy models before faults: p50 / p99 / max", _p50_p99_max(found.baseline)),
        ("the same under faults, without faults of gateway and keeper", f"{_p50_p99_max(found.during)}{_ratio(found)}"),
        ("the same under all faults", _p50_p99_max(found.everything)),
        ("how late the clients sent their requests", _p50_p99_max(found.lateness)),
    ]


def report_json(timeline: Timeline, found: RunStatistics) -> dict[str, Any]:  # one JSON object
    """The run and its statistics; NaN as null."""
    names = ("seed", "seconds", "machine", "server", "command", "models")
    return {
        **{name: getattr(timeline.run, name) for name in names},
        "green": not found.findings,
        **_json_value(asdict(found)),
    }


def _json_value(value: Any) -> Any:  # any part of the statistics, as JSON
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, 6)
    if isinstance(value, list):
        return [_json_value(each) for each in value]
    if isinstance(value, dict):
        return {name: _json_value(each) for name, each in value.items()}
    return value


def _keeper_rows(found: RunStatistics) -> list[tuple[str, str]]:
    if not found.keeper.count:
        return []
    return [
        ("keepers killed / connections broken with them", f"{found.keeper.count} / {found.broken_by_keepers}"),
        ("from a keeper's death until all models serve again: p50 / p99 / max", _p50_p99_max(found.keeper)),
    ]


def _poison_rows(found: RunStatistics) -> list[tuple[str, str]]:
    if not found.poison_deaths:
        return []
    text = f"{len(found.poison_deaths)} / {max(found.poison_deaths)} / {found.innocents}"
    return [("poison requests / deaths until refused, at most / bystanders served", text)]


def _fault_row(each: FaultStatistics) -> str:
    cells = " | ".join(_p50_max(times) for times in (each.answered, each.recovery, each.whole))
    return f"| {each.name} | {each.row} | {each.injected} | {cells} |"


def _finding_lines(found: RunStatistics) -> list[str]:
    if not found.findings:
        return ["", "No findings."]
    more = len(found.findings) - MAX_FINDINGS
    shown = [f"- {each}" for each in found.findings[:MAX_FINDINGS]]
    return ["", f"{len(found.findings)} findings:", *shown, *([f"- and {more} more"] if more > 0 else [])]


def _ratio(found: RunStatistics) -> str:
    if not found.baseline.count or not found.during.count or not found.baseline.p99:
        return ""
    return f" (p99 {found.during.p99 / found.baseline.p99:.2f} x)"


def _p50_p99_max(times: Distribution) -> str:
    return " / ".join(_time(each) for each in (times.p50, times.p99, times.worst))


def _p50_max(times: Distribution) -> str:
    return f"{_time(times.p50)} / {_time(times.worst)}" if times.count else ""


def _time(seconds: float) -> str:
    if math.isnan(seconds):
        return "n/a"
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"
