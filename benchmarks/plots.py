"""Bars of a comparison: requests on one core, CPU for each request, latency of a lone client."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from report import FEW_ROUNDS, titles
from row import Row
from table import figure
from targets import OURS
from work import LoadLevel, Scene

OURS_COLOUR, OTHERS_COLOUR, TAIL_COLOUR = "#0b6e4f", "#b8c1cc", "#6b7785"
COLUMNS = 2
WIDTH_IN, BAR_IN, FRAME_IN, HEAD_IN = 11.0, 0.27, 1.0, 0.9
ROOM_FOR_FIGURES = 1.3
"""Of the axis, past the longest bar."""
LONGEST = 12.0
"""In units of the shortest bar, where short is good: what is longer leaves the panel, else the good look alike."""


@dataclass(frozen=True)
class Chart:
    """One file: a panel for each load, a bar for each server."""

    file: str
    title: str
    unit: Callable[[Scene], tuple[str, float]]
    """What stands at the axis of a load, and what the value is divided by."""
    value: str
    """A field of Row."""
    tail: str = ""
    """A field that is drawn as a thin line past the bar."""
    most_first: bool = False
    is_drawn: Callable[[LoadLevel], bool] = lambda _run: True


def _cpu_unit(scene: Scene) -> tuple[str, float]:
    return ("CPU ms for each request", 1e3) if scene.is_large else ("CPU µs for each request", 1)


CHARTS = (
    Chart("requests", "Requests on one core: longer is better", lambda _: ("requests/s", 1), "rate", most_first=True),
    Chart("cpu", "CPU for each request, all processes of the server: shorter is better", _cpu_unit, "cpu_us"),
    Chart(
        "latency",
        "Latency of one connection: bar p50, line p99; shorter is better",
        lambda _: ("ms", 1),
        "p50_ms",
        tail="p99_ms",
        is_drawn=lambda run: run.connections == 1,
    ),
)


def draw(rows: Sequence[Row], names: Mapping[str, str], folder: Path, facts: Mapping[str, str]) -> None:
    """A file for each chart, of the loads that were measured."""
    folder.mkdir(parents=True, exist_ok=True)
    foot = f"{facts['CPU']}, {facts['kernel']}, Python {facts['Python']}, {facts['date']}"
    for chart in CHARTS:
        panels = _panels(chart, [row for row in rows if row.holds])
        if panels:
            _sheet(chart, panels, names, foot).savefig(folder / f"{chart.file}.png", dpi=110)


def _panels(chart: Chart, rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each load, the best at the top."""
    found: dict[str, list[Row]] = {}
    for key, (_, run) in titles().items():
        here = [row for row in rows if row.run == key and chart.is_drawn(run)]
        if here:
            found[key] = sorted(here, key=lambda row: getattr(row, chart.value), reverse=chart.most_first)
    return found


def _sheet(chart: Chart, panels: Mapping[str, Sequence[Row]], names: Mapping[str, str], foot: str) -> Figure:
    lines = ceil(len(panels) / COLUMNS)
    most = max(len(rows) for rows in panels.values())
    sheet = Figure(figsize=(WIDTH_IN, HEAD_IN + lines * (most * BAR_IN + FRAME_IN)), layout="constrained")
    sheet.suptitle(chart.title, fontsize=13, fontweight="bold", x=0.01, ha="left")
    sheet.supxlabel(foot, fontsize=7.5, color=TAIL_COLOUR, x=0.01, ha="left")
    places = sheet.subplots(lines, COLUMNS, squeeze=False).ravel()
    for axes, (key, rows) in zip(places, panels.items(), strict=False):
        _panel(axes, chart, key, rows, names)
    for axes in places[len(panels) :]:
        axes.set_axis_off()
    return sheet


def _panel(axes: Axes, chart: Chart, key: str, rows: Sequence[Row], names: Mapping[str, str]) -> None:
    scene, run = titles()[key]
    unit, divisor = chart.unit(scene)
    values = [getattr(row, chart.value) / divisor for row in rows]
    ends = [max(value, _tail(chart, row) / divisor) for value, row in zip(values, rows, strict=True)]
    colours = [OURS_COLOUR if row.peer == OURS else OTHERS_COLOUR for row in rows]
    heights = range(len(rows))
    edge = max(ends) if chart.most_first else min(max(ends), LONGEST * min(values))
    axes.barh(heights, [min(value, edge) for value in values], color=colours, height=0.72)
    axes.hlines(
        heights,
        [min(value, edge) for value in values],
        [min(end, edge) for end in ends],
        color=TAIL_COLOUR,
        linewidth=1,
    )
    for height, value, end in zip(heights, values, ends, strict=True):
        words = f"{figure(value)} / {figure(end)}" if end > value else figure(value)
        words = f">> {words}" if value > edge else words
        axes.annotate(words, (min(end, edge), height), (4, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(heights, [names[row.peer] for row in rows], fontsize=8)
    for label, row in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_fontweight("bold" if row.peer == OURS else "normal")
    axes.invert_yaxis()
    axes.set_xlim(0, edge * ROOM_FOR_FIGURES)
    axes.set_title(f"{key}: {run.title}", fontsize=9, loc="left")
    axes.set_xlabel(unit, fontsize=8)
    axes.tick_params(axis="x", labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)


def _tail(chart: Chart, row: Row) -> float:
    """The end of the thin line; none where there is none, or too few requests to know it."""
    is_known = chart.tail and row.requests >= FEW_ROUNDS[chart.tail]
    return float(getattr(row, chart.tail)) if is_known else 0.0
