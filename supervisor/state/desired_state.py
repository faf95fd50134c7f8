"""What people asked for beyond the start-up rule: loads and unloads by name, on disk.

The start-up rule is the control mode's: every model, or those named by `--load-model`. A load or unload by hand is a
deviation from it and is written down before it is carried out. It holds until the server is stopped in an orderly way:
after any crash, of the brain or of all, the world converges to it; after a clean stop the next start follows its own
flags again (docs/decisions/002-wanted-state.md).
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mmsup.supervisor.state import atomic_file

FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class DesiredModel:
    """What was last asked of one model."""

    up: bool
    config: str = ""
    """ModelConfig as JSON that came with the load; empty: what the repository says."""


class DesiredState:
    """Model name to Wish; each change is on disk when `put` returns."""

    def __init__(self, path: Path, mode: str) -> None:
        self._path = path
        self._mode = mode
        self._models = _read(path, mode)

    def get(self, name: str) -> DesiredModel | None:
        """What was asked of this model by hand, if anything."""
        return self._models.get(name)

    def names(self) -> list[str]:
        """All models of which something was asked."""
        return sorted(self._models)

    def set(self, name: str, wish: DesiredModel) -> None:
        """Write down what is asked. OSError if it cannot be written; then it has not been asked."""
        changed = {**self._models, name: wish}
        _write(self._path, self._mode, changed)
        self._models = changed

    def clear(self) -> None:
        """An orderly stop: the next start follows its flags. On a disk that refuses, it will take this for a crash."""
        self._models = {}
        with contextlib.suppress(OSError):
            atomic_file.remove(self._path)


def _read(path: Path, mode: str) -> dict[str, DesiredModel]:
    try:
        raw: Any = json.loads(path.read_bytes())  # JSON of ours, or of a disk that lies
        if raw["format"] != FORMAT or raw["mode"] != mode:
            return {}
        return {name: DesiredModel(each["up"] is True, str(each["config"])) for name, each in raw["models"].items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def _write(path: Path, mode: str, wishes: dict[str, DesiredModel]) -> None:
    models = {name: {"up": wish.up, "config": wish.config} for name, wish in sorted(wishes.items())}
    text = json.dumps({"format": FORMAT, "mode": mode, "models": models}, indent=1)
    atomic_file.write(path, text.encode())
