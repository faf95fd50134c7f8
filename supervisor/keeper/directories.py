"""State and runtime directory of a server: created private, locked, cleared of a previous server's sockets.

One server per state directory and per runtime directory. The lock is a flock, which the kernel releases when the keeper
exits, however it exits. The lock file stays; it holds the keeper's pid, for people.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Sequence
from typing import Final

from mmsup.ipc import paths
from mmsup.ipc.failpoints import failpoint

_TRANSIENT: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


class AlreadyRunning(Exception):  # noqa: N818 - an answer, not an error of ours
    """Another server holds this directory."""


class UnsafeDirectory(Exception):  # noqa: N818 - an answer, not an error of ours
    """The directory cannot be created or written to, or other users have access to it."""

    @property
    def is_transient(self) -> bool:
        """The system is short of descriptors or memory: nothing is wrong with the directory, and a restart may help."""
        return isinstance(self.__cause__, OSError) and self.__cause__.errno in _TRANSIENT


class ServerDirectories:
    """Both directories, held from the constructor to `release`."""

    def __init__(self, state_dir: str, runtime_dir: str) -> None:
        """Create and lock them; AlreadyRunning or UnsafeDirectory if that fails."""
        self._runtime_dir = runtime_dir
        self.locks: list[int] = []
        try:
            for directory in (state_dir, runtime_dir):
                _make_private(directory)
            for directory in dict.fromkeys(os.path.realpath(each) for each in (state_dir, runtime_dir)):
                self.locks.append(_lock(directory))
            _make_scratch(state_dir)
        except (AlreadyRunning, UnsafeDirectory):
            self.release()
            raise

    @classmethod
    def adopt(cls, runtime_dir: str, locks: Sequence[int]) -> ServerDirectories:
        """The directories that this process holds already, by the descriptors of its locks."""
        adopted = cls.__new__(cls)
        adopted._runtime_dir, adopted.locks = runtime_dir, list(locks)
        return adopted

    def remove_worker_sockets(self) -> None:
        """Called while no worker runs."""
        for name in os.listdir(self._runtime_dir):
            path = os.path.join(self._runtime_dir, name)
            if paths.is_worker_name(name) and stat.S_ISSOCK(os.lstat(path).st_mode):
                os.unlink(path)

    def release(self) -> None:
        for fd in self.locks:
            os.ftruncate(fd, 0)
            os.close(fd)
        self.locks.clear()


def _make_private(directory: str) -> None:
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        found = os.stat(directory)
    except OSError as error:
        raise UnsafeDirectory(
            f"{directory}: cannot be made: {error.strerror}: name a directory that this user may make"
        ) from error
    if found.st_uid != os.geteuid():
        raise UnsafeDirectory(
            f"{directory}: belongs to uid {found.st_uid}, not to uid {os.geteuid()}, which runs this server: "
            f"{_advice(directory, 'change its owner')}"
        )
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        mode = f"{found.st_mode & 0o777:04o}"
        raise UnsafeDirectory(
            f"{directory}: others may write to it (mode {mode}): {_advice(directory, 'make it 0700')}"
        )


def _make_scratch(state_dir: str) -> None:
    """The folder of the workers' directories. Made here too, so that a disk on which there is no room for it refuses
    the start, and not every controller that is started."""
    try:
        os.makedirs(os.path.join(state_dir, "scratch"), mode=0o700, exist_ok=True)
    except OSError as error:
        raise UnsafeDirectory(
            f"{state_dir}: cannot be written to: {error.strerror}: free some space, or name another directory"
        ) from error


def _advice(directory: str, otherwise: str) -> str:
    """What to do with a directory that is not ours alone, such as a volume that Kubernetes has made."""
    if os.access(directory, os.W_OK | os.X_OK, effective_ids=True):
        return (
            f"{otherwise}, or name a directory below it, as {directory}/mmsup, which is then made for this user alone"
        )
    return f"{otherwise}, or name another directory"


def _lock(directory: str) -> int:
    path = paths.lock_file(directory)
    try:
        failpoint("keeper.lock")
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise UnsafeDirectory(f"{path}: cannot be opened: {error.strerror}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with contextlib.closing(os.fdopen(fd, encoding="utf-8", errors="replace")) as file:
            holder = f"another mmsup (pid {file.read().strip() or 'unknown'}) holds {directory}"
        raise AlreadyRunning(f"{holder}: give another --state-dir and --runtime-dir") from None
    try:
        os.ftruncate(fd, 0)
        os.write(fd, f"{os.getpid()}\n".encode())
    except OSError as error:
        os.close(fd)
        raise UnsafeDirectory(
            f"{directory}: cannot be written to: {error.strerror}: free some space, or name another directory"
        ) from error
    return fd
