"""The measured footprints on disk: a small file of the state directory, which outlives restarts and upgrades.

Each is bound to a digest of the files of its model; of other files it is not returned. Losing the file costs guesses
until the next load of each model, so one that cannot be read is begun anew, and one that cannot be written is no error.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from mmsup.supervisor.capacity.cuda_contexts import MAX_DEVICES, CudaContexts
from mmsup.supervisor.capacity.footprint import Footprint, FootprintKey
from mmsup.supervisor.state import atomic_file

FILE_NAME: Final = "footprints.json"
MAX_ENTRIES: Final = 4096
MAX_BYTES: Final = 4 << 20
_FORMAT: Final = 1
_FIELDS: Final = tuple(Footprint.__slots__)


@dataclass(frozen=True, slots=True)
class StoredFootprint:
    digest: str
    footprint: Footprint


class FootprintStore:
    """The one that was measured last is kept longest."""

    def __init__(self, path: Path) -> None:
        self._path = path
        document = _document(path)
        self._entries = dict(_footprints(document.get("footprints")))
        self.contexts = CudaContexts(dict(_contexts(document.get("cuda_contexts"))))

    def get(self, key: FootprintKey, digest: str) -> Footprint | None:
        found = self._entries.get(key)
        return found.footprint if found is not None and found.digest == digest else None

    def put(self, key: FootprintKey, digest: str, footprint: Footprint) -> None:
        self._entries.pop(key, None)
        self._entries[key] = StoredFootprint(digest, footprint)
        while len(self._entries) > MAX_ENTRIES:
            del self._entries[next(iter(self._entries))]

    def of_model(self, name: str) -> dict[FootprintKey, StoredFootprint]:
        return {key: each for key, each in self._entries.items() if key.model == name}

    def footprints(self) -> Iterator[tuple[FootprintKey, Footprint]]:
        return ((key, each.footprint) for key, each in self._entries.items())

    def contents(self) -> bytes:
        """What is to be written; the oldest are left out if it would be more than MAX_BYTES."""
        lines = [
            json.dumps({**asdict(key), "digest": each.digest, **asdict(each.footprint)})
            for key, each in self._entries.items()
        ]
        contexts = json.dumps(self.contexts.by_device)
        total = sum(map(len, lines)) + 2 * len(lines)
        while lines and total > MAX_BYTES - 64 - len(contexts):
            total -= len(lines.pop(0)) + 2
        rows = ",\n".join(lines)
        return f'{{"format": {_FORMAT}, "cuda_contexts": {contexts}, "footprints": [\n{rows}\n]}}\n'.encode()

    def write(self, contents: bytes) -> None:
        """May wait for the disk."""
        with contextlib.suppress(OSError):
            atomic_file.write(self._path, contents)


def _document(path: Path) -> dict[str, Any]:  # JSON
    """What the file holds; nothing if it cannot be read, or is of another format."""
    try:
        with path.open("rb") as file:
            document: Any = json.loads(file.read(MAX_BYTES + 1))  # JSON from a file, checked by those below
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) and document.get("format") == _FORMAT else {}


def _footprints(rows: Any) -> Iterator[tuple[FootprintKey, StoredFootprint]]:  # JSON
    """The valid entries. Members that are not known, of a later version, are left out."""
    for row in rows[:MAX_ENTRIES] if isinstance(rows, list) else ():
        with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError):
            texts = [row[name] for name in ("model", "version", "engine", "device", "digest")]
            numbers = {name: type(getattr(Footprint(), name))(row[name]) for name in _FIELDS if name in row}
            if all(isinstance(each, str) for each in texts) and all(each >= 0 for each in numbers.values()):
                yield FootprintKey(*texts[:4]), StoredFootprint(texts[4], Footprint(**numbers))


def _contexts(found: Any) -> Iterator[tuple[str, int]]:  # JSON
    for name, size_bytes in list(found.items())[:MAX_DEVICES] if isinstance(found, dict) else ():
        if type(size_bytes) is int and size_bytes > 0:
            yield name, size_bytes
