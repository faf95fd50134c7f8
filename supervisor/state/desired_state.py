"""The desired state of models that people have loaded or unloaded by name, on disk.

All other models follow the rule of the control mode: every model, or those named by `--load-model`. A load or unload
by hand overrides the rule for one model, and is written before it is carried out. It holds until the server is stopped
in an orderly way: after a crash of the controller or of the whole server the models are brought to it; after a clean
stop the next start follows its own flags (docs/decisions/002-wanted-state.md).
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
    up: bool
    config: str = ""
    """ModelConfig as JSON that came with the load; empty: the repository's."""


class DesiredState:
    """Model name to DesiredModel; each change is on disk when `set` returns."""

    def __init__(self, path: Path, mode: str) -> None:
        self._path = path
        self._mode = mode
        self._models = _read(path, mode)

    def get(self, name: str) -> DesiredModel | None:
        return self._models.get(name)

    def names(self) -> list[str]:
        return sorted(self._models)

    def set(self, name: str, desired: DesiredModel) -> None:
        """Save what is asked for a model. OSError: it could not be saved, and nothing has changed."""
        changed = {**self._models, name: desired}
        _write(self._path, self._mode, changed)
        self._models = changed

    def clear(self) -> None:
        """An orderly stop: the next start follows its flags. If the file cannot be removed, that looks like a crash."""
        self._models = {}
        with contextlib.suppress(OSError):
            atomic_file.remove(self._path)


def _read(path: Path, mode: str) -> dict[str, DesiredModel]:
    try:
        raw: Any = json.loads(path.read_bytes())  # JSON of ours, or damaged
        if raw["format"] != FORMAT or raw["mode"] != mode:
            return {}
        return {name: DesiredModel(each["up"] is True, str(each["config"])) for name, each in raw["models"].items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def _write(path: Path, mode: str, desired_models: dict[str, DesiredModel]) -> None:
    models = {name: {"up": each.up, "config": each.config} for name, each in sorted(desired_models.items())}
    text = json.dumps({"format": FORMAT, "mode": mode, "models": models}, indent=1)
    atomic_file.write(path, text.encode())
