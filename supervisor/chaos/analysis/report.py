"""The report of a run: a table in GitHub's form, and JSON. Pure."""

from __future__ import annotations

import math
from typing import Any, Final

from mmsup.supervisor.chaos.analysis.statistics import Distribution, FaultStatistics, RunStatistics
from mmsup.supervisor.chaos.analysis.timeline import Timeline

MAX_FINDINGS: Final = 20
"""Findings that are printed in full."""


def report_table(story: Timeline, found: RunStatistics) -> str:
    """What was measured, then the faults by class, then what is wrong."""
    began = story.run
    lines = [
        f"{began.server}: {began.seconds:.0f} s with {len(began.models)} models, seed {began.seed}, on {began.machine}",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in summary_rows(found)),
        "",
        "| fault (p50 / worst) | row | injected | in flight answered | back, beyond load and pause | back, all told |",
        "|---|---|---|---|---|---|",
        *(_fault_row(each) for each in found.classes),
    ]
    return "\n".join(lines + _finding_lines(found))


def summary_rows(found: RunStatistics) -> list[tuple[str, str]]:
    """The rows of the first table."""
    injected = sum(each.injected for each in found.classes)
    left = ", ".join(f"{count} {name}" for name, count in found.left.items())
    return [
        ("faults injected / passed over, their victim still being down", f"{injected} / {found.passed_over}"),
        ("classes of faults", str(len(found.classes))),
        ("requests sent / served", f"{found.sent:,} / {found.served:,}"),
        ("failed on healthy models", f"**{found.failed_healthy}** of {found.sent_healthy:,}"),
        ("failed on faulty models, not explained by a fault", f"**{found.failed_unexplained}**"),
        ("failed on faulty models, each with its fault", f"{found.failed_explained}"),
        ("connections broken with the gateway that held them", f"{found.broken_by_gateways}"),
        *_keeper_rows(found),
        *_poison_rows(found),
        ("wrong or crossed bytes", f"**{found.wrong}**"),
        ("requests without an outcome, or with two", f"**{found.lost}**"),
        ("left behind", f"**{sum(found.left.values())}** ({left})"),
        ("unplanned restarts of brain or gateway", f"**{found.unplanned}**"),
        ("death in the journal, from the kernel's word: p50 / p99 / max", _p50_p99_max(found.detection)),
        ("those in flight answered, from the kernel's word: p50 / p99 / max", _p50_p99_max(found.in_flight)),
        ("serves again, beyond its own load and the announced pause: p50 / p99 / worst", _p50_p99_max(found.recovery)),
        ("the same while brain or gateway was hurt as well", _p50_p99_max(found.shaken)),
        ("serves again, all told: p50 / p99 / worst", _p50_p99_max(found.whole)),
        ("latency of healthy models before faults: p50 / p99 / max", _p50_p99_max(found.baseline)),
        ("the same under faults, deaths of gateway and keeper apart", f"{_p50_p99_max(found.during)}{_ratio(found)}"),
        ("the same under all faults", _p50_p99_max(found.everything)),
        ("how late the clients themselves were", _p50_p99_max(found.lateness)),
    ]


def report_json(story: Timeline, found: RunStatistics) -> dict[str, Any]:  # one JSON object
    """The same for machines."""
    began = story.run
    return {
        "seed": began.seed,
        "seconds": began.seconds,
        "machine": began.machine,
        "server": began.server,
        "command": began.command,
        "models": began.models,
        "green": not found.findings,
        **found.as_json(),
    }


def _keeper_rows(found: RunStatistics) -> list[tuple[str, str]]:
    """Where it was killed."""
    if not found.keeper.count:
        return []
    return [
        ("keepers killed / connections broken with them", f"{found.keeper.count} / {found.broken_by_keepers}"),
        ("all models serve again after it: p50 / p99 / worst", _p50_p99_max(found.keeper)),
    ]


def _poison_rows(found: RunStatistics) -> list[tuple[str, str]]:
    """Where there was such a request."""
    if not found.poison_deaths:
        return []
    text = f"{len(found.poison_deaths)} / {max(found.poison_deaths)} / {found.innocents}"
    return [("requests that kill each time / deaths until refused, at most / innocents beside them served", text)]


def _fault_row(each: FaultStatistics) -> str:
    times = " | ".join(_p50_max(spread) for spread in (each.answered, each.recovery, each.whole))
    return f"| {each.name} | {each.row} | {each.injected} | {times} |"


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


def _p50_p99_max(spread: Distribution) -> str:
    return " / ".join(_time(each) for each in (spread.p50, spread.p99, spread.worst))


def _p50_max(spread: Distribution) -> str:
    return f"{_time(spread.p50)} / {_time(spread.worst)}" if spread.count else ""


def _time(seconds: float) -> str:
    if math.isnan(seconds):
        return "n/a"
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"
