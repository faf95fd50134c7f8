"""The report of a comparison in Markdown: machine, a table per load, targets, the command of each server. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from row import Row
from table import figure, table
from targets import ABSOLUTE, BARE, BASE, OURS, Target, Verdict
from work import SCENES, LoadLevel, Scene

FEW_ROUNDS = {"p50_ms": 10, "p99_ms": 200, "p999_ms": 2000}
"""Percentiles need at least so many requests."""
CLIENT_BOUND = 0.95
NONE = "-"
KNOWN = "known"
"""Head of the share of requests that mmsup recognised by their bytes."""
FIGURE_NAMES = {
    "rate": "requests/s",
    "megabytes_s": "MB/s",
    "p50_ms": "p50, ms",
    "p99_ms": "p99, ms",
    "cpu_us": "CPU, µs",
}
AGAINST = {OURS: "its own", BASE: "the other commit's", BARE: "the network alone"}
MET_TEXT = {True: "yes", False: "**no**", None: "not measured"}


@dataclass(frozen=True)
class NamedServer:
    name: str
    version: str


def report(
    facts: Mapping[str, str], servers: Mapping[str, NamedServer], rows: Sequence[Row], verdicts: Sequence[Verdict]
) -> str:
    parts = ["\n".join(f"- {name}: {value}" for name, value in facts.items())]
    for scene in SCENES:
        for run in scene.runs:
            if here := [row for row in rows if row.run == run.key]:
                parts += [f"## {run.key}: {run.title}", _load(scene, here, servers)]
    parts += ["## Targets, as ratios within this run", _verdicts(verdicts, servers)]
    parts += ["## How each was started", *_commands(rows, servers)]
    return "\n\n".join(parts) + "\n"


def titles() -> dict[str, tuple[Scene, LoadLevel]]:
    """Every load by its key."""
    return {run.key: (scene, run) for scene in SCENES for run in scene.runs}


def _load(scene: Scene, rows: Sequence[Row], servers: Mapping[str, NamedServer]) -> str:
    ours = next((row for row in rows if row.peer == OURS and row.holds), None)
    heads = ["server", "version", "CPU µs/req", "spread", "its CPU ÷ mmsup's", KNOWN, "p50 ms", "p99 ms", "p99.9 ms"]
    heads += ["req/s", "mmsup's req/s ÷ its", "MB/s", "note"]
    lines = [_row_cells(row, ours, servers) for row in sorted(rows, key=lambda row: (not row.holds, row.cpu_us))]
    absent = {"MB/s"} if not scene.is_large else set()
    absent |= {KNOWN} if all(row.known_share is None for row in rows) else set()
    kept = [place for place, head in enumerate(heads) if head not in absent]
    return table([heads[place] for place in kept], [[line[place] for place in kept] for line in lines])


def _row_cells(row: Row, ours: Row | None, servers: Mapping[str, NamedServer]) -> list[str]:
    server = servers[row.peer]
    if not row.holds:
        return [server.name, server.version, *[NONE] * 10, _note(row)]
    ours = ours or row
    dearer, faster = f"{row.cpu_us / ours.cpu_us:.2f}", f"{ours.rate / row.rate:.2f}"
    cells = [server.name, server.version, figure(row.cpu_us), _spread(row), dearer]
    cells += [NONE if row.known_share is None else f"{row.known_share:.1%}"]
    cells += [figure(getattr(row, name)) if row.requests >= few else NONE for name, few in FEW_ROUNDS.items()]
    return [*cells, figure(row.rate), faster, figure(row.megabytes_s), _note(row)]


def _spread(row: Row) -> str:
    """Range of the CPU time of the rounds as a share of the median."""
    return f"{(row.highest_us - row.lowest_us) / row.cpu_us:.0%}" if row.rounds > 1 else NONE


def _note(row: Row) -> str:
    words = [row.note]
    if row.wrong:
        words += [f"WRONG ANSWERS ({row.wrong}): {row.trouble[:200]}"]
    elif not row.holds:
        words += [f"not measured: {row.trouble[:200] or 'no request was answered'}"]
    else:
        words += [row.trouble[:200]]
        words += ["the client was the limit"] if row.client_busy > CLIENT_BOUND else []
    return "; ".join(word for word in words if word)


def _verdicts(verdicts: Sequence[Verdict], servers: Mapping[str, NamedServer]) -> str:
    heads = ["load", "figure", "wanted", "mmsup", "reference", "against", "ratio", "met", "note"]
    return table(heads, [_verdict(each, servers) for each in verdicts])


def _verdict(verdict: Verdict, servers: Mapping[str, NamedServer]) -> list[str]:
    target = verdict.target
    known = [figure(value) if value is not None else NONE for value in (verdict.ours, verdict.reference)]
    whose = servers[verdict.whose].name if verdict.whose in servers else ""
    whose += f" on {target.run_of_reference}" if target.run_of_reference else ""
    ratio = f"{verdict.ratio:.2f}" if verdict.ratio is not None else NONE
    return [
        target.run,
        FIGURE_NAMES[target.figure],
        target_text(target),
        *known,
        whose,
        ratio,
        MET_TEXT[verdict.met],
        target.remark,
    ]


def target_text(target: Target) -> str:
    """A target in words."""
    side = "at least" if target.wants_more else "at most"
    if target.against == ABSOLUTE:
        return f"{side} {target.bound:,g}"
    reference = AGAINST.get(target.against, target.against)
    return f"{side} {target.bound:g} times {reference}"


def _commands(rows: Sequence[Row], servers: Mapping[str, NamedServer]) -> list[str]:
    first = {row.peer: row.command for row in reversed(rows) if row.command}
    return [f"{servers[key].name} {servers[key].version}:\n\n    {first[key]}" for key in servers if key in first]
