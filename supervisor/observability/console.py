"""Lines on standard error, for people and collectors; never waits for whoever reads them.

Text on a terminal (or `default`), else one JSON object a line, with the same fields.
"""

from __future__ import annotations

import json
import os
import select
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

LINE_BYTES: Final = 4096
"""A pipe that polls writable takes so much without waiting (PIPE_BUF); longer lines are cut."""

Field = str | int | float | bool | None


class Console:
    """One process's way to say what an operator may want to know."""

    def __init__(self, log_format: str, fd: int = 2) -> None:
        """`log_format` as in Settings."""
        self._fd = fd
        self._as_text = log_format == "default" or (log_format == "auto" and os.isatty(fd))
        self._lost = 0
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)

    def log(self, level: str, event: str, **fields: Field) -> None:
        """Write one line, or lose and count it if nobody reads."""
        time = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        if self._lost:
            fields["lost_lines"] = self._lost
        line = _text(time, level, event, fields) if self._as_text else _json(time, level, event, fields)
        self._lost = 0 if self._write(line.encode()) else self._lost + 1

    def log_table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Rows for people, aligned; in JSON one object for each row, for there a table has no place."""
        if not self._as_text:
            for row in rows:
                self.log("info", "row", **dict(zip(columns, row, strict=True)))
            return
        widths = [max(len(row[place]) for row in (columns, *rows)) for place in range(len(columns))]
        for row in (columns, *rows):
            line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            self._write(line.rstrip().encode())

    def _write(self, line: bytes) -> bool:
        try:
            if not any(events & select.POLLOUT for _, events in self._poll.poll(0)):
                return False
            os.write(self._fd, line[: LINE_BYTES - 1] + b"\n")
        except OSError:
            return False
        return True


def _text(time: str, level: str, event: str, fields: dict[str, Field]) -> str:
    # JSON's quoting, so that no text from outside can begin a line or move a cursor.
    words = [f"{name}={json.dumps(value)}" for name, value in fields.items()]
    return " ".join([time, f"{level:<7}", event, *words])


def _json(time: str, level: str, event: str, fields: dict[str, Field]) -> str:
    return json.dumps({"time": time, "level": level, "event": event, **fields})
