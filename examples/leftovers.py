"""What a server had, and what of it is still there: processes, sockets, shared memory, control groups.

Used by demo.py to show that nothing stays behind. Linux only, `/proc` only; it sees what its user may see.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
from collections.abc import Iterator
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
LISTEN = "0A"
SHARED = ("/memfd:", "/dev/shm/")  # noqa: S108 - names to look for, none is made


class ResourceWatch:
    """Notes what belongs to a process and all its descendants, each time `update` is called."""

    def __init__(self, pid: int) -> None:
        """From now on orphans of our descendants become our children, so that none can slip away."""
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._root = pid
        self._births: dict[int, str] = {}
        self._memory: set[str] = set()
        self._segments: set[str] = set()
        self._cgroups: set[Path] = set()
        self._own_cgroups = set(cgroups(os.getpid()))

    @property
    def seen(self) -> int:
        """How many processes there were."""
        return len(self._births)

    def update(self) -> None:
        """Note what there is now."""
        for pid in [self._root, *descendants(self._root)]:
            with contextlib.suppress(OSError):
                self._births[pid] = start_ticks(pid)
                self._cgroups |= set(cgroups(pid)) - self._own_cgroups
                for inode, name in shared_memory(pid):
                    (self._memory if name.startswith("/memfd:") else self._segments).add(inode + " " + name)

    def left(self, runtime_dir: Path, ports: list[int]) -> dict[str, list[str]]:
        """By kind, what is still there."""
        alive = [f"pid {pid}" for pid, born in self._births.items() if is_alive(pid, born)]
        orphans = [f"pid {pid}" for pid in descendants(os.getpid()) if f"pid {pid}" not in alive]
        files = [str(path) for path in runtime_dir.rglob("*") if stat.S_ISSOCK(path.lstat().st_mode)]
        return {
            "processes": alive + orphans,
            "sockets": files + listening(str(runtime_dir), ports),
            "segments": [each for each in sorted(self._segments) if os.path.exists(each.split(" ", 1)[1])],
            "memfds": sorted(
                self._memory & {f"{inode} {name}" for pid in pids() for inode, name in shared_memory_or_none(pid)}
            ),
            "cgroups": [str(path) for path in sorted(self._cgroups) if path.exists()],
        }


def pids() -> list[int]:
    """All processes."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name, which may hold anything."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()


def start_ticks(pid: int) -> str:
    """When the process began, in ticks: with it a pid names one process for ever."""
    return _stat(pid)[19]


def is_alive(pid: int, born: str) -> bool:
    """Whether it is that process still, zombies included."""
    try:
        return start_ticks(pid) == born
    except OSError:
        return False


def descendants(pid: int) -> list[int]:
    """Children, their children, and so on."""
    parents: dict[int, list[int]] = {}
    for each in pids():
        with contextlib.suppress(OSError):
            parents.setdefault(int(_stat(each)[1]), []).append(each)
    found, waiting = [], [pid]
    while waiting:
        children = parents.get(waiting.pop(), [])
        found += children
        waiting += children
    return found


def shared_memory(pid: int) -> Iterator[tuple[str, str]]:
    """Inode and name of all shared memory that a process maps or has open."""
    with open(f"/proc/{pid}/maps") as maps:
        for line in maps:
            fields = line.split(None, 5)
            if len(fields) == 6 and fields[5].startswith(SHARED):
                yield fields[4], fields[5].strip().removesuffix(" (deleted)")
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            name = os.readlink(f"/proc/{pid}/fd/{fd}")
            if name.startswith(SHARED):
                yield str(os.stat(f"/proc/{pid}/fd/{fd}").st_ino), name.removesuffix(" (deleted)")


def shared_memory_or_none(pid: int) -> list[tuple[str, str]]:
    """As `held`, of a process that may go or be another user's."""
    try:
        return list(shared_memory(pid))
    except OSError:
        return []


def cgroups(pid: int) -> Iterator[Path]:
    """The control groups of a process, in every hierarchy that is mounted at the usual place, with their parents."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for root in [controllers.removeprefix("name=")] if controllers else ["", "unified"]:
            mounted = Path("/sys/fs/cgroup", root)
            folder = mounted / path[1:]
            while folder != mounted and folder.is_dir():
                yield folder
                folder = folder.parent


def listening(prefix: str, ports: list[int]) -> list[str]:
    """UNIX sockets below a path, and TCP listeners on these ports."""
    unix = [line.split(None, 7) for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    found = [fields[7] for fields in unix if len(fields) == 8 and fields[7].startswith(prefix)]
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                _, local, _, state = line.split()[:4]
                port = int(local.rpartition(":")[2], 16)
                if state == LISTEN and port in ports:
                    found.append(f"port {port}")
    return found
