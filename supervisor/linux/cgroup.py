"""One control group: the kernel's folder in which one life of a worker runs, is counted, and is ended as a whole.

Covers: reading its counters, its share of the processors, killing all that lives in it, removing it; the same for v1
(one folder in each of several hierarchies) and v2 (one folder). Nothing here waits: what is not done yet says False,
and the caller comes back.
Does not cover: which kind there is, who makes groups (cgroup.py); who joins them (spawn.py).
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PROCS: Final = "cgroup.procs"
LOADING_WEIGHTS: Final = {"cpu.shares": "512", "cpu.weight": "50"}
"""A worker's share of the processors while it comes up, v1 and v2: half of that of one that serves. Nothing is
lost where a processor is idle; where none is, callers of the others do not wait behind imports and weights."""
SERVING_WEIGHTS: Final = {"cpu.shares": "1024", "cpu.weight": "100"}
"""What a new group has by itself: whatever a worker starts, in whatever sessions, competes as one worker."""
_NO_LIMIT: Final = 1 << 62
"""v1 reports a missing limit as the largest page count; anything up here is no cap."""


@dataclass(frozen=True, slots=True)
class CgroupUsage:
    """What the kernel counts of a group now. `reclaimable_bytes` of the usage are page cache it would give back."""

    usage_bytes: int
    reclaimable_bytes: int
    peak_bytes: int
    oom_kills: int


class Cgroup:
    """The group of one life; the same object whether it was just made or found again by a new brain."""

    def __init__(
        self,
        folders: Sequence[Path],
        cap: str = "",
        read: Callable[[Path], CgroupUsage] | None = None,
        usage: str = "",
    ) -> None:
        """`cap` and `usage` name the files of the limit and of what is used of it in the first folder, `read` reads the
        counters there."""
        self._folders = tuple(folders)
        self._cap = cap
        self._read = read
        self._usage = usage

    @property
    def name(self) -> str:
        """Its name, for the note of the child; empty where there is no group."""
        return self._folders[0].name if self._folders else ""

    @property
    def folder(self) -> Path | None:
        """Where its memory is counted; None where there is no group."""
        return self._folders[0] if self._folders else None

    @property
    def procs_files(self) -> tuple[str, ...]:
        """Where a child writes itself in: `Spawn.procs_files`."""
        return tuple(str(folder / PROCS) for folder in self._folders)

    @property
    def cap_bytes(self) -> int | None:
        """The cap that the kernel enforces; None if it enforces none."""
        if not self._folders:
            return None
        with contextlib.suppress(OSError, ValueError):
            limit = int((self._folders[0] / self._cap).read_text())
            return limit if limit < _NO_LIMIT else None
        return None

    def usage_bytes(self) -> int | None:
        """What is used now, page cache included, and nothing else is read; None where there is no group."""
        if not self._folders:
            return None
        with contextlib.suppress(OSError, ValueError):
            return int((self._folders[0] / self._usage).read_text())
        return None

    def read(self) -> CgroupUsage | None:
        """The counters; None where there is no group, or none any more."""
        if self._read is None:
            return None
        try:
            return self._read(self._folders[0])
        except OSError:  # a file of a group that is removed while it is open says ENODEV
            return None

    def set_cpu_weights(self, weights: Mapping[str, str]) -> None:
        """Its share of the processors from now on, LOADING or SERVING; nothing where there is no cpu controller."""
        for folder in self._folders:
            for name, weight in weights.items():
                write_file(folder / name, weight)

    def kill(self) -> bool:
        """Send SIGKILL to all that live in it; True once there is nobody."""
        return kill(self._folders)

    def remove(self) -> bool:
        """Remove the folders; False if something still lives there: kill, and come back."""
        return remove_all(self._folders)


def kill(folders: Sequence[Path]) -> bool:
    """Send SIGKILL to all that live in these folders, never by a number alone; True if nobody is there."""
    if not _all_members(folders):
        return True
    ended = [write_file(folder / "cgroup.kill", "1") for folder in folders]
    if not all(ended):
        _kill_frozen(folders)
    return False


def _kill_frozen(folders: Sequence[Path]) -> None:
    states = [folder / "freezer.state" for folder in folders]
    for state in states:
        write_file(state, "FROZEN")  # so that nothing forks between the listing and the signal
    try:
        _kill_members(folders)
    finally:
        for state in states:
            write_file(state, "THAWED")


def _kill_members(folders: Sequence[Path]) -> None:
    with contextlib.ExitStack() as stack:
        pidfds: dict[int, int] = {}
        for pid in _all_members(folders):
            with contextlib.suppress(OSError):  # gone, or we are short of descriptors: the caller comes back
                pidfds[pid] = os.pidfd_open(pid)
                stack.callback(os.close, pidfds[pid])
        # Who is still listed now is the process that the pidfd holds, or another member: never a stranger.
        for pid in _all_members(folders) & pidfds.keys():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfds[pid], signal.SIGKILL)


def _all_members(folders: Sequence[Path]) -> set[int]:
    return {pid for folder in folders for pid in _members(folder)}


def _members(folder: Path) -> set[int]:
    return {int(line) for line in read_file(folder / PROCS).split()} - {0, os.getpid()}


def remove_all(folders: Sequence[Path]) -> bool:
    """Remove folders; False if something lives in one, True also if they were gone already."""
    gone = [_remove(folder) for folder in folders]
    return all(gone)


def _remove(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno in (errno.EBUSY, errno.ENOTEMPTY):
            return False
        raise
    return True


def read_file(path: Path) -> str:
    """What a file of the kernel's says; nothing if it is not there."""
    try:
        return path.read_text()
    except OSError:
        return ""


def write_file(path: Path, text: str) -> bool:
    """Write to a file of the kernel's; False if it is not there or refuses. Never makes one."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        os.write(fd, text.encode())
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def parse_field(text: str, name: str) -> int:
    """The number behind a name in a file of `name number` lines; 0 if it is not among them."""
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0
