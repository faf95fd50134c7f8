"""Where things lie in the runtime directory; numbers, never model names (a socket path ends at 107 bytes)."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

SOCKET_PATH_LIMIT: Final = 107
_WORKER_NAME: Final = re.compile(r"w\d+\.\d+")


def worker_name(instance: int, generation: int) -> str:
    """The name of one worker life: of its control group, its folder, its socket. No other life ever has the same."""
    return f"w{instance}.{generation}"


def is_worker_name(name: str) -> bool:
    """Whether something is named after a worker life."""
    return _WORKER_NAME.fullmatch(name) is not None


def control_socket(runtime_dir: str) -> str:
    """The UNIX socket on which `mmsup ctl` finds the brain."""
    return str(Path(runtime_dir) / "control.sock")


def worker_socket(runtime_dir: str, instance: int, generation: int) -> str:
    """The path of one worker life's data socket; no other life ever has the same."""
    return str(Path(runtime_dir) / worker_name(instance, generation))


def lock_file(directory: str) -> str:
    """The file whose flock says that a server lives in this directory."""
    return str(Path(directory) / "lock")


def default_runtime_dir(uid: int, environ: dict[str, str]) -> str:
    """`/run/mmsup` for root, else below `$XDG_RUNTIME_DIR` (or a private folder of /tmp)."""
    if uid == 0:
        return "/run/mmsup"
    base = environ.get("XDG_RUNTIME_DIR") or f"/tmp/mmsup-{uid}"  # noqa: S108 - made 0700 and checked by the keeper
    return str(Path(base) / "mmsup")


def default_state_dir(uid: int, environ: dict[str, str]) -> str:
    """`/var/lib/mmsup` for root, else below `$XDG_STATE_HOME`."""
    if uid == 0:
        return "/var/lib/mmsup"
    base = environ.get("XDG_STATE_HOME") or os.path.join(environ.get("HOME", "/"), ".local", "state")
    return str(Path(base) / "mmsup")
