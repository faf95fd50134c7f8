"""What a comparison says: the machine, a table for each load, which targets were met, how each server was started.

Pure: everything comes in, Markdown goes out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from row import Row
from table import figure, table
from targets import ABSOLUTE, OURS, Target, Verdict
from work import SCENES, LoadLevel, Scene

FEW_ROUNDS = {"p50_ms": 10, "p99_ms": 200, "p999_ms": 2000}
"""Below so many requests a percentile is not known, and is not printed."""
CLIENT_BOUND = 0.95
NONE = "-"
FIGURE_NAMES = {
    "rate": "requests/s",
    "megabytes_s": "MB/s",
    "p50_ms": "p50, ms",
    "p99_ms": "p99, ms",
    "cpu_us": "CPU, µs",
}
MET_TEXT = {True: "yes", False: "**no**", None: "not measured"}


@dataclass(frozen=True)
class NamedServer:
    """A server as the report names it."""

    name: str
    version: str


def report(
    facts: Mapping[str, str], servers: Mapping[str, NamedServer], rows: Sequence[Row], said: Sequence[Verdict]
) -> str:
    """All of it."""
    parts = ["\n".join(f"- {name}: {value}" for name, value in facts.items())]
    for scene in SCENES:
        for run in scene.runs:
            if here := [row for row in rows if row.run == run.key]:
                parts += [f"## {run.key}: {run.title}", _load(scene, here, servers)]
    parts += ["## Targets, as ratios within this run", _verdicts(said, servers)]
    parts += ["## How each was started", *_commands(rows, servers)]
    return "\n\n".join(parts) + "\n"


def titles() -> dict[str, tuple[Scene, LoadLevel]]:
    """Every load by its key."""
    return {run.key: (scene, run) for scene in SCENES for run in scene.runs}


def _load(scene: Scene, rows: Sequence[Row], servers: Mapping[str, NamedServer]) -> str:
    ours = next((row for row in rows if row.peer == OURS and row.holds), None)
    heads = ["server", "version", "req/s", "spread", "MB/s", "p50 ms", "p99 ms", "p99.9 ms"]
    heads += ["CPU µs/req", "mmsup's req/s ÷ its", "its CPU ÷ mmsup's", "note"]
    lines = [_row_cells(row, ours, servers) for row in sorted(rows, key=lambda row: -row.rate * row.holds)]
    if not scene.is_large:
        lines = [[*line[:4], *line[5:]] for line in lines]
        heads.remove("MB/s")
    return table(heads, lines)


def _row_cells(row: Row, ours: Row | None, servers: Mapping[str, NamedServer]) -> list[str]:
    server = servers[row.peer]
    if not row.holds:
        return [server.name, server.version, *[NONE] * 9, _note(row)]
    rates = ours is not None and row.peer != OURS
    cells = [server.name, server.version, figure(row.rate), _spread(row), figure(row.megabytes_s)]
    cells += [figure(getattr(row, name)) if row.requests >= few else NONE for name, few in FEW_ROUNDS.items()]
    cells += [figure(row.cpu_us)]
    cells += [f"{ours.rate / row.rate:.2f}", f"{row.cpu_us / ours.cpu_us:.2f}"] if rates and ours else ["1", "1"]
    return [*cells, _note(row)]


def _spread(row: Row) -> str:
    """How far the rounds lie apart, as a share of the median."""
    return f"{(row.highest - row.lowest) / row.rate:.0%}" if row.rounds > 1 else NONE


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


def _verdicts(said: Sequence[Verdict], servers: Mapping[str, NamedServer]) -> str:
    heads = ["load", "figure", "wanted", "mmsup", "reference", "against", "ratio", "met", "note"]
    return table(heads, [_verdict(each, servers) for each in said])


def _verdict(said: Verdict, servers: Mapping[str, NamedServer]) -> list[str]:
    target = said.target
    known = [figure(value) if value is not None else NONE for value in (said.ours, said.reference)]
    whose = servers[said.whose].name if said.whose in servers else ""
    whose += f" on {target.run_of_reference}" if target.run_of_reference else ""
    ratio = f"{said.ratio:.2f}" if said.ratio is not None else NONE
    return [
        target.run,
        FIGURE_NAMES[target.figure],
        target_text(target),
        *known,
        whose,
        ratio,
        MET_TEXT[said.met],
        target.remark,
    ]


def target_text(target: Target) -> str:
    """A target in words."""
    side = "at least" if target.wants_more else "at most"
    if target.against == ABSOLUTE:
        return f"{side} {target.bound:,g}"
    reference = "its own" if target.against == OURS else target.against
    return f"{side} {target.bound:g} times {reference}"


def _commands(rows: Sequence[Row], servers: Mapping[str, NamedServer]) -> list[str]:
    first = {row.peer: row.command for row in reversed(rows) if row.command}
    return [f"{servers[key].name} {servers[key].version}:\n\n    {first[key]}" for key in servers if key in first]
