"""The bundles of the last deaths on disk: `deaths/MODEL/NUMBER.json` in the state directory, mode 0600.

Bounded three ways: for each model, in all, and in bytes; what is oldest goes first. A number is never given twice, so
the highest is the last. A reader sees a whole bundle or none, after any death (whole.py). Called from one thread only,
which may wait for the disk; a disk that refuses is the caller's to tell of, and what it refused is kept in memory.
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
"""Bundles in memory that the disk refused, one for a model."""
_NAME: Final = re.compile(r"([0-9]{8,18})\.json", re.ASCII)


@dataclass(frozen=True, slots=True)
class ReportFile:
    """One file."""

    number: int
    model: str
    size_bytes: int


class CrashArchive:
    """All of them. `open` comes first."""

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
        """Know what earlier brains wrote, and take away what they did not finish."""
        found: list[ReportFile] = []
        with contextlib.suppress(OSError):
            for path in self.folder.glob("*/*"):
                name = _NAME.fullmatch(path.name)
                if name:
                    found.append(ReportFile(int(name[1]), path.parent.name, path.stat().st_size))
                elif path.name.endswith(atomic_file.UNFINISHED_SUFFIX):
                    path.unlink()
        self._files = sorted(found, key=lambda each: each.number)
        self._next = self._files[-1].number + 1 if self._files else 1
        self._prune("")

    def write(self, model: str, bundle: Json) -> str:
        """Write one down, under the number that it gets; where it lies. OSError if the disk refuses."""
        bundle = {"number": self._next, **bundle}
        self._next += 1
        data = json.dumps(bundle, indent=1, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        filed = ReportFile(bundle["number"], model, len(data))
        try:
            atomic_file.write(self._path(filed), data)
        except OSError:
            self._keep_unwritten(model, bundle)
            raise
        self._unwritten.pop(model, None)
        self._files.append(filed)
        self._prune(model)
        return str(self._path(filed).relative_to(self.folder.parent))

    def reports(self, model: str) -> list[Json]:
        """Those of a model, the last death first; one that cannot be read any more is passed over."""
        held = [self._unwritten[model]] if model in self._unwritten else []
        filed = [found for each in reversed(self._files) if each.model == model and (found := self._read(each))]
        return held + filed

    def _read(self, filed: ReportFile) -> Json | None:
        try:
            read: Any = json.loads(self._path(filed).read_bytes())  # checked in the next line
        except (OSError, ValueError):
            return None
        return read if isinstance(read, dict) else None

    def _keep_unwritten(self, model: str, bundle: Json) -> None:
        self._unwritten.pop(model, None)
        self._unwritten[model] = bundle
        while len(self._unwritten) > MAX_UNWRITTEN:
            del self._unwritten[next(iter(self._unwritten))]

    def _path(self, filed: ReportFile) -> Path:
        return self.folder / filed.model / f"{filed.number:08d}.json"

    def _prune(self, model: str) -> None:
        """Take away what is too much: of this model, then of all."""
        per_model, in_all, limit_bytes = self._limits
        own = [each for each in self._files if each.model == model]
        for each in own[: max(len(own) - per_model, 0)]:
            self._remove(each)
        while len(self._files) > in_all or sum(each.size_bytes for each in self._files) > limit_bytes:
            self._remove(self._files[0])

    def _remove(self, filed: ReportFile) -> None:
        self._files.remove(filed)
        path = self._path(filed)
        with contextlib.suppress(OSError):
            path.unlink()
        with contextlib.suppress(OSError):  # others of this model lie there
            path.parent.rmdir()
