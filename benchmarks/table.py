"""A table in Markdown that reads as well in a terminal: columns of one width, figures to the right."""

from __future__ import annotations

from collections.abc import Sequence

from mmsup.supervisor.chaos.analysis.statistics import Distribution


def table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """The first column is text, so is a last one named "note"; the others are figures."""
    widths = [max(len(line[place]) for line in (heads, *lines)) for place in range(len(heads))]
    left = [place == 0 or heads[place] in TEXT for place in range(len(heads))]

    def row(cells: Sequence[str]) -> str:
        padded = [f"{c:<{w}}" if at_left else f"{c:>{w}}" for c, w, at_left in zip(cells, widths, left, strict=True)]
        return f"| {' | '.join(padded)} |"

    rule = [f"{'-' * (w - 1)}{'-' if at_left else ':'}" for w, at_left in zip(widths, left, strict=True)]
    return "\n".join([row(heads), row(rule), *(row(_safe(line)) for line in lines)])


ENOUGH = 200
TEXT = ("B's fault", "note", "version", "wanted", "against", "figure", "met", "server", "why")
"""Heads of columns that are words."""


def figure(value: float) -> str:
    """Three digits that matter, thousands apart."""
    for least, places in ((100, 0), (10, 1), (1, 2)):
        if abs(value) >= least:
            return f"{value:,.{places}f}"
    return f"{value:.3f}" if value else "0"


def milliseconds(latencies: Distribution) -> str:
    """The 99th percentile, where there are enough to have one."""
    return figure(latencies.p99 * 1e3) if latencies.count > ENOUGH else "-"


def _safe(cells: Sequence[str]) -> list[str]:
    return [cell.replace("|", "/").replace("\n", " ") for cell in cells]
