"""Tables: by rich, with colours, on a terminal; plain aligned columns elsewhere.

Piped output is never cut to a width and never coloured, so that it can be searched. Cells must be printable text.
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
"""Colour of a cell that holds exactly the name of a state."""

Row = Sequence[str]


def draw(columns: Sequence[str], rows: Iterable[Row], stream: TextIO | None = None) -> None:
    """Write a table; columns whose name begins with `>` are right-aligned."""
    out = stream or sys.stdout
    listed = [list(row) for row in rows]
    if out.isatty():
        _print_rich(columns, listed, out)
    else:
        for line in aligned(columns, listed):
            print(line, file=out)


def aligned(columns: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """The lines of the table with aligned columns, at their full width."""
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
        # Text, not markup: brackets in a reason must be printed as they are.
        table.add_row(*[Text(cell, style=STYLES.get(cell, "")) for cell in row])
    Console(file=out).print(table)
