"""Log lines on standard error: text on a terminal, else one JSON object a line with the same fields. Never blocks."""

from __future__ import annotations

import json
import os
import select
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from mmsup.ipc.log_settings import LogSettings

LINE_BYTES: Final = 4096
"""A pipe that polls writable accepts so much without blocking (PIPE_BUF); longer lines are cut."""

Field = str | int | float | bool | None


class Console:
    """The console of one process."""

    def __init__(self, settings: LogSettings, fd: int = 2) -> None:
        self._fd = fd
        self.apply(settings)
        self._lost = 0
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)

    def apply(self, settings: LogSettings) -> None:
        """From the next line on."""
        self._settings = settings
        self._as_text = settings.format in ("default", "ISO8601") or (settings.format == "auto" and os.isatty(self._fd))

    def log(self, level: str, event: str, **fields: Field) -> None:
        """Write one line, unless the settings leave out its level. If the reader is too slow it is lost, and the next
        line has the number of lost ones."""
        if not self._settings.shows(level):
            return
        time = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        if self._lost:
            fields["lost_lines"] = self._lost
        as_json = {"time": time, "level": level, "event": event, **fields}
        line = _text(time, level, event, fields) if self._as_text else json.dumps(as_json)
        self._lost = 0 if self._write(line.encode()) else self._lost + 1

    def log_table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Write aligned rows; in JSON one object for each row."""
        if not self._settings.shows("info"):
            return
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
    # Quoted as JSON, so that no text from outside can start a new line or move the cursor.
    words = [f"{name}={json.dumps(value)}" for name, value in fields.items()]
    return " ".join([time, f"{level:<7}", event, *words])
