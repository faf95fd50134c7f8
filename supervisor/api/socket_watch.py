"""The file of the control socket: somebody may remove it with its folder, or bind another socket over it.

Whoever is connected stays so, but nobody new finds the server. So the brain looks at the file from time to time, and
where it is not its own any more it binds a new socket there, in the place of the keeper's. A brain that comes later
asks once whose socket it is: the kernel tells a client which process listens.
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
    """Looks from `start` to `close`. `serve` is given each new listener, which it owns."""

    def __init__(self, path: str, serve: Callable[[socket.socket], object]) -> None:
        """This process listens at its socket by now, wherever its file is."""
        self._path = path
        self._serve = serve
        self._timer: asyncio.TimerHandle | None = None
        self._seen = _identity(path) if is_listener(path, os.getpid()) else None

    def start(self) -> None:
        """Begin to look."""
        self._check()

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _check(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(CHECK_INTERVAL_S, self._check)
        if self._seen is None or _identity(self._path) != self._seen:
            with contextlib.suppress(OSError):  # no room, no permission: at the next look
                self._open()

    def _open(self) -> None:
        made = listen(self._path)
        self._seen = _identity(self._path)
        self._serve(made)


def listen(path: str) -> socket.socket:
    """A socket that listens at `path`, in the place of any that is there, in a private folder. OSError if it cannot."""
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
