"""The desired state of models that people have loaded or unloaded by name, on disk.

All other models follow the rule of the control mode: every model, or those named by `--load-model`. A load or unload
by hand overrides the rule for one model, and is written before it is carried out. It holds until the server is stopped
in an orderly way: after a crash of the controller or of the whole server the models are brought to it; after a clean
stop the next start follows its own flags (docs/decisions/002-wanted-state.md).
"""

from __future__ import annotations

import contextlib
import errno
import json
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mmsup.supervisor.state import atomic_file
from mmsup.supervisor.state.kept_aside import keep_aside

FORMAT: Final = 1
SIZE_LIMIT_BYTES: Final = 16 << 20
"""A larger file is damaged. None is written, so that the next start can read what this one has saved."""


@dataclass(frozen=True, slots=True)
class DesiredModel:
    up: bool
    config: str = ""
    """ModelConfig as JSON that came with the load; empty: the repository's."""
    asleep: bool = False
    """It was put to sleep: loaded when it is asked for, whatever the rule for it."""


class UnreadableState(Exception):  # noqa: N818 - caught by the caller, which keeps the file aside
    """The file is there, and this version cannot say what it means."""


class DesiredState:
    """Model name to DesiredModel; each change is on disk when `set` returns.

    A file that cannot be read is kept aside, and never overwritten: where it cannot be renamed, nothing is saved.
    """

    def __init__(self, path: Path, mode: str) -> None:
        self._path = path
        self._mode = mode
        self.problem = ""
        """What was unreadable, and where it is now; empty if nothing was."""
        self._is_writable = True
        self._models: dict[str, DesiredModel] = {}
        try:
            self._models = _read(path, mode)
        except UnreadableState as unreadable:
            self._keep_aside(str(unreadable))

    def get(self, name: str) -> DesiredModel | None:
        return self._models.get(name)

    def names(self) -> list[str]:
        return sorted(self._models)

    def set(self, name: str, desired: DesiredModel) -> None:
        """Save what is asked for a model. OSError: it could not be saved, and nothing has changed."""
        if not self._is_writable:
            raise OSError(errno.EEXIST, self.problem)
        changed = {**self._models, name: desired}
        _write(self._path, self._mode, changed)
        self._models = changed

    def clear(self) -> None:
        """An orderly stop: the next start follows its flags. If the file cannot be removed, that looks like a crash."""
        self._models = {}
        if self._is_writable:
            with contextlib.suppress(OSError):
                atomic_file.remove(self._path)

    def _keep_aside(self, reason: str) -> None:
        lost = "loads and unloads by hand from before are not known, every model follows the flags"
        try:
            kept = keep_aside(self._path)
            self.problem = f"{self._path.name} {reason}: it is kept as {kept.name}; {lost}"
        except OSError as error:
            self._is_writable = False
            self.problem = (
                f"{self._path.name} {reason}, and could not be renamed ({error.strerror}); {lost}, "
                f"and none is saved until the file is moved away and the server started again"
            )


def _read(path: Path, mode: str) -> dict[str, DesiredModel]:
    """UnreadableState if there is a file and it is not one of this version's."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UnreadableState("is no plain file")
        with path.open("rb") as file:
            data = file.read(SIZE_LIMIT_BYTES + 1)
        if len(data) > SIZE_LIMIT_BYTES:
            raise UnreadableState(f"is larger than {SIZE_LIMIT_BYTES >> 20} MiB")
        raw: Any = json.loads(data)  # JSON of ours, or damaged
        if raw["format"] != FORMAT:
            raise UnreadableState(f"has format {raw['format']!r:.20}, this version reads {FORMAT}")
        models = {
            name: DesiredModel(each["up"] is True, str(each["config"]), each.get("asleep") is True)
            for name, each in raw["models"].items()
        }
        return models if raw["mode"] == mode else {}
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UnreadableState(f"cannot be read: {error.strerror}") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise UnreadableState("is cut or damaged") from None


def _write(path: Path, mode: str, desired_models: dict[str, DesiredModel]) -> None:
    models = {
        name: {"up": each.up, "config": each.config} | ({"asleep": True} if each.asleep else {})
        for name, each in sorted(desired_models.items())
    }
    data = json.dumps({"format": FORMAT, "mode": mode, "models": models}, indent=1).encode()
    if len(data) > SIZE_LIMIT_BYTES:
        raise OSError(errno.EFBIG, f"the configurations given with loads exceed {SIZE_LIMIT_BYTES >> 20} MiB together")
    atomic_file.write(path, data)
