"""Checks the file of the control socket: it may be removed with its directory, or another socket bound over it.

Connections stay then, but nobody finds the server any more. So the controller checks the file every second, and if it
is not its own any more, binds a new socket there in place of the keeper's. A new controller asks once whose socket it
is: the kernel tells a client which process listens.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from collections.abc import Callable
from typing import Final

from mmsup.supervisor.linux.unix_socket import is_listener

CHECK_INTERVAL_S: Final = 1.0
BACKLOG: Final = 64


class SocketWatch:
    """Checks from `start` to `close`. `on_listener` gets each new listener, and owns it."""

    def __init__(self, path: str, on_listener: Callable[[socket.socket], object]) -> None:
        self._path = path
        self._on_listener = on_listener
        self._timer: asyncio.TimerHandle | None = None
        self._seen: tuple[int, int] | None = None

    def start(self) -> None:
        """Check from now on. This process listens at its socket by now, whatever has become of the file."""
        if is_listener(self._path, os.getpid()):
            self._seen = _identity(self._path)
        self._check()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _check(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(CHECK_INTERVAL_S, self._check)
        if self._seen is None or _identity(self._path) != self._seen:
            with contextlib.suppress(OSError):  # no room, no permission: at the next check
                listener = listen(self._path)
                self._seen = _identity(self._path)
                self._on_listener(listener)


def listen(path: str) -> socket.socket:
    """A socket that listens at `path`, in place of any that is there, in a private directory. OSError if it cannot."""
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            os.unlink(path)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.bind(path)
        os.chmod(path, 0o600)  # nobody can have connected: it does not listen yet
        made.listen(BACKLOG)
    except OSError:
        made.close()
        raise
    return made


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
