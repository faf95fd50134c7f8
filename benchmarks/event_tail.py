"""Follows a server's file of events while it runs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class EventTail:
    """Call `read` at least once for each file that the server fills: it keeps the present one and the one before."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("rb")
        self._rest = b""

    def read(self) -> Iterator[dict[str, Any]]:  # JSON
        """The events since the last call."""
        yield from self._lines()
        if os.stat(self._path).st_ino != os.fstat(self._file.fileno()).st_ino:
            yield from self._lines()  # what was written between the two
            self._file.close()
            self._file = self._path.open("rb")
            yield from self._lines()

    def close(self) -> None:
        self._file.close()

    def _lines(self) -> Iterator[dict[str, Any]]:
        *lines, self._rest = (self._rest + self._file.read()).split(b"\n")
        yield from (json.loads(each) for each in lines if each)
