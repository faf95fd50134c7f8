"""Rows for a person: rich tables on a terminal, plain aligned columns anywhere else.

Covers: columns, colours of states. Does not cover: what stands in a cell (human.py), which rows there are (ctl.py).
Piped output is never cut to a width and never coloured, so that it can be searched. Cells are safe text already.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Final, TextIO

STYLES: Final = {
    "ready": "green",
    "starting": "yellow",
    "loading": "yellow",
    "warming": "yellow",
    "draining": "yellow",
    "backoff": "red",
    "failed": "bold red",
    "quarantined": "bold red",
    "blocked": "bold red",
    "suspect": "yellow",
    "stopped": "dim",
    "absent": "dim",
    "asleep": "dim",
    "up": "green",
    "down": "dim",
}
"""Colour of a lifecycle word, or of what a request is taken for, wherever it is a whole cell."""

Row = Sequence[str]


def draw(columns: Sequence[str], rows: Iterable[Row], stream: TextIO | None = None) -> None:
    """Write a table; columns whose name begins with `>` stand to the right."""
    out = stream or sys.stdout
    listed = [list(row) for row in rows]
    if out.isatty():
        _print_rich(columns, listed, out)
    else:
        for line in aligned(columns, listed):
            print(line, file=out)


def aligned(columns: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """The table as aligned lines, nothing cut."""
    table = [[name.removeprefix(">") for name in columns], *rows]
    widths = [max(len(row[index]) for row in table) for index in range(len(columns))]
    right = [name.startswith(">") for name in columns]
    return ["  ".join(_padded(*each) for each in zip(row, widths, right, strict=True)).rstrip() for row in table]


def _padded(text: str, width: int, right: bool) -> str:
    return text.rjust(width) if right else text.ljust(width)


def _print_rich(columns: Sequence[str], rows: Sequence[Row], out: TextIO) -> None:
    from rich.console import Console  # noqa: PLC0415 - 30 ms, only for a table on a terminal
    from rich.table import Table  # noqa: PLC0415 - as above
    from rich.text import Text  # noqa: PLC0415 - as above

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name.removeprefix(">"), justify="right" if name.startswith(">") else "left", overflow="fold")
    for row in rows:
        # Text, not markup: a bracket in a model's reason is a bracket.
        table.add_row(*[Text(cell, style=STYLES.get(cell, "")) for cell in row])
    Console(file=out).print(table)
