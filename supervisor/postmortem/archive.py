"""The last crash reports on disk: `deaths/MODEL/NUMBER.json` in the state directory, mode 0600.

Bounded in three ways: reports of one model, reports of all models, bytes; the oldest are removed first. Numbers are
never reused, so the highest is the newest. A reader sees a complete report or none (state/atomic_file.py). Called from
one thread only, which may wait for the disk; a report that the disk refuses is kept in memory and the error raised.
"""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mmsup.supervisor.state import atomic_file

Json = dict[str, Any]  # one JSON object

MAX_PER_MODEL: Final = 5
MAX_REPORTS: Final = 100
MAX_BYTES: Final = 16 << 20
MAX_UNWRITTEN: Final = 16
"""Reports in memory that the disk refused, one for each model."""
_NAME: Final = re.compile(r"([0-9]{8,18})\.json", re.ASCII)


@dataclass(frozen=True, slots=True)
class ReportFile:
    number: int
    model: str
    size_bytes: int


class CrashArchive:
    """`open` is called first."""

    def __init__(
        self, folder: Path, per_model: int = MAX_PER_MODEL, in_all: int = MAX_REPORTS, limit_bytes: int = MAX_BYTES
    ) -> None:
        self.folder = folder
        self._limits = per_model, in_all, limit_bytes
        self._files: list[ReportFile] = []
        """Oldest first."""
        self._unwritten: dict[str, Json] = {}
        self._next = 1

    def open(self) -> None:
        """Find what earlier controllers wrote, and remove what they did not finish."""
        found: list[ReportFile] = []
        with contextlib.suppress(OSError):
            for path in self.folder.glob("*/*"):
                if name := _NAME.fullmatch(path.name):
                    found.append(ReportFile(int(name[1]), path.parent.name, _size_bytes(path)))
                elif path.name.endswith(atomic_file.UNFINISHED_SUFFIX):
                    _remove_unfinished(path)
        self._files = sorted(found, key=lambda each: each.number)
        self._next = self._files[-1].number + 1 if self._files else 1
        self._prune("")

    def write(self, model: str, report: Json) -> str:
        """Write a report under the next number; returns its path below the state directory. May raise OSError."""
        report = {"number": self._next, **report}
        self._next += 1
        data = json.dumps(report, indent=1, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        file = ReportFile(report["number"], model, len(data))
        try:
            atomic_file.write(self._path(file), data)
        except OSError:
            self._keep_unwritten(model, report)
            raise
        self._unwritten.pop(model, None)
        self._files.append(file)
        self._prune(model)
        return str(self._path(file).relative_to(self.folder.parent))

    def reports(self, model: str) -> list[Json]:
        """Those of a model, newest first, without any that cannot be read."""
        unwritten = [self._unwritten[model]] if model in self._unwritten else []
        written = [found for each in reversed(self._files) if each.model == model and (found := self._read(each))]
        return unwritten + written

    def _read(self, file: ReportFile) -> Json | None:
        try:
            read: Any = json.loads(self._path(file).read_bytes())  # checked in the next line
        except (OSError, ValueError, RecursionError):
            return None
        return read if isinstance(read, dict) else None

    def _keep_unwritten(self, model: str, report: Json) -> None:
        self._unwritten.pop(model, None)
        self._unwritten[model] = report
        while len(self._unwritten) > MAX_UNWRITTEN:
            del self._unwritten[next(iter(self._unwritten))]

    def _path(self, file: ReportFile) -> Path:
        return self.folder / file.model / f"{file.number:08d}.json"

    def _prune(self, model: str) -> None:
        """Remove the oldest beyond the limits: of this model, then of all."""
        per_model, in_all, limit_bytes = self._limits
        own = [each for each in self._files if each.model == model]
        for each in own[: max(len(own) - per_model, 0)]:
            self._remove(each)
        while len(self._files) > in_all or sum(each.size_bytes for each in self._files) > limit_bytes:
            self._remove(self._files[0])

    def _remove(self, file: ReportFile) -> None:
        self._files.remove(file)
        path = self._path(file)
        with contextlib.suppress(OSError):
            path.unlink()
        with contextlib.suppress(OSError):  # not empty
            path.parent.rmdir()


def _size_bytes(path: Path) -> int:
    """0 if it cannot be told: its number is taken all the same, so that no report is ever overwritten."""
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0


def _remove_unfinished(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
