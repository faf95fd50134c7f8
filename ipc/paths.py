"""Paths in the runtime and state directories. Numbers, never model names: a socket path has at most 107 bytes."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

SOCKET_PATH_LIMIT: Final = 107
WorkerId = tuple[int, int]
"""Instance and generation: names one worker process, for ever."""
_WORKER_NAME: Final = re.compile(r"w\d+\.\d+")


def worker_name(instance: int, generation: int) -> str:
    """The name of a worker's control group, scratch directory and socket; never reused."""
    return f"w{instance}.{generation}"


def is_worker_name(name: str) -> bool:
    return _WORKER_NAME.fullmatch(name) is not None


def control_socket(runtime_dir: str) -> str:
    """The UNIX socket of the controller, for `mmsup ctl`."""
    return str(Path(runtime_dir) / "control.sock")


def relay_socket(runtime_dir: str) -> str:
    """The UNIX socket on which gateways take calls from the gRPC front process."""
    return str(Path(runtime_dir) / "relay.sock")


def worker_socket(runtime_dir: str, instance: int, generation: int) -> str:
    """The ZeroMQ data socket of one worker process; never reused."""
    return str(Path(runtime_dir) / worker_name(instance, generation))


def lock_file(directory: str) -> str:
    """The file that a running server holds locked (flock)."""
    return str(Path(directory) / "lock")


def default_runtime_dir(uid: int, environ: dict[str, str]) -> str:
    """`/run/mmsup` for root, else below `$XDG_RUNTIME_DIR` (or a private directory in /tmp)."""
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
