"""One control group, in which one worker process runs with all its descendants: read its counters, kill it, remove it.

The same for cgroup v1 (one folder in each of several hierarchies) and v2 (one folder). Nothing here waits: a function
that has not finished its work returns False, and is called again later. Groups are created by cgroup_backend.py; a
process joins its group in keeper/spawn.py.
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

from mmsup.ipc.memory.kernel_file import read_kernel_file
from mmsup.supervisor.linux.process_tree import read_stat

PROCS: Final = "cgroup.procs"
IDLE: Final = "idle"
"""The last word of the name of the group in which processes start (idle_group.py)."""
IDLE_FILE: Final = "cpu.idle"
"""Since Linux 5.15."""
LOADING_WEIGHTS: Final = {"cpu.shares": "512", "cpu.weight": "50"}
"""CPU share of a worker that loads and is no longer idle, v1 and v2: half of that of a serving one. It loses nothing
while a CPU is idle; while none is, imports and weights of one model delay the requests of the others less."""
SERVING_WEIGHTS: Final = {"cpu.shares": "1024", "cpu.weight": "100"}
"""The kernel's default for a new group. All processes that a worker starts share it."""
_NO_LIMIT: Final = 1 << 62
"""v1 reports a missing limit as the largest number of pages; no limit is this large."""
_ENDED: Final = ("Z", "X")
"""States of a thread in /proc/TID/stat."""
_FREEZER: Final = "freezer"


@dataclass(frozen=True, slots=True)
class CgroupUsage:
    usage_bytes: int
    reclaimable_bytes: int
    """Part of the usage: page cache, which the kernel frees when memory is short."""
    peak_bytes: int
    oom_kills: int


class Cgroup:
    """The group of one worker process, whether it was just created or found again by a restarted controller."""

    def __init__(
        self, folders: Sequence[Path], cap: str = "", read: Callable[[Path], CgroupUsage] | None = None, usage: str = ""
    ) -> None:
        """`cap` and `usage` are the names of the files for limit and usage in the first folder; `read` reads the
        counters there. Without cgroups there is no folder."""
        self.folders = tuple(folders)
        self._cap = cap
        self._read = read
        self._usage = usage

    @property
    def name(self) -> str:
        """Empty without a group."""
        return self.folders[0].name if self.folders else ""

    @property
    def folder(self) -> Path | None:
        """The folder with the memory counters; None without a group."""
        return self.folders[0] if self.folders else None

    @property
    def procs_files(self) -> tuple[str, ...]:
        """Files into which a child writes its pid to join: `Spawn.procs_files`."""
        return tuple(str(folder / PROCS) for folder in self.folders)

    @property
    def cap_bytes(self) -> int | None:
        """The memory limit that the kernel enforces; None if it enforces none."""
        if not self.folders:
            return None
        with contextlib.suppress(OSError, ValueError):
            limit = int(read_kernel_file(self.folders[0] / self._cap))
            return limit if limit < _NO_LIMIT else None
        return None

    def usage_bytes(self) -> int | None:
        """Memory in use, page cache included, from one file; None without a group."""
        if not self.folders:
            return None
        with contextlib.suppress(OSError, ValueError):
            return int(read_kernel_file(self.folders[0] / self._usage))
        return None

    def read(self) -> CgroupUsage | None:
        """All counters; None if the group does not exist, or exists no more."""
        if self._read is None:
            return None
        try:
            return self._read(self.folders[0])
        except OSError:  # ENODEV from a file of a group that was removed while the file was open
            return None

    def set_cpu_weights(self, weights: Mapping[str, str]) -> None:
        """Set its CPU share, LOADING_WEIGHTS or SERVING_WEIGHTS; no effect without a cpu controller."""
        for folder in self.folders:
            for name, weight in weights.items():
                write_file(folder / name, weight)

    def set_device_cap(self, region: str, cap_bytes: int) -> bool:
        """Limit the memory of a device, where the dmem controller is in force; False if the kernel refuses."""
        return any([write_file(folder / "dmem.max", f"{region} {cap_bytes}") for folder in self.folders])  # noqa: C419

    def pids(self) -> set[int]:
        """The processes in it; none without a group."""
        return _all_members(self.folders)

    def holds(self, pid: int) -> bool:
        """Whether a process is in it, in each hierarchy that limits. True without a group, and if it has exited.

        Where its main thread is none of them any more, the living threads decide: /proc says `/` of an exited one.
        """
        return self._holds_thread(pid) or all(self._holds_thread(each) for each in _living_threads(pid))

    def _holds_thread(self, tid: int) -> bool:
        text = read_file(Path(f"/proc/{tid}/cgroup"))
        return not text or is_member(text, self.folders)

    def kill(self) -> bool:
        """Send SIGKILL to all its processes; True if there is none."""
        return kill(self.folders)

    def remove(self) -> bool:
        """Remove the folders; False if processes are left in them."""
        return remove_all(self.folders)


def has_lost_main_thread(pid: int) -> bool:
    """Whether the main thread of a process has ended, and another lives."""
    stat = read_stat(pid)
    return stat is not None and stat.state in _ENDED and bool(_living_threads(pid))


def _living_threads(pid: int) -> list[int]:
    """Those of a process that have not ended and do not exit."""
    try:
        tids = [int(each) for each in os.listdir(f"/proc/{pid}/task")]
    except OSError:
        return []
    stats = {each: read_stat(each) for each in tids}
    return [tid for tid, stat in stats.items() if stat is not None and stat.state not in _ENDED and not stat.is_exiting]


def is_member(text: str, folders: Sequence[Path]) -> bool:
    """Whether the process of this /proc/PID/cgroup is in the group with these folders: a line for each. Pure.

    Except the freezer, which limits nothing: who freezes a process from outside moves it there into a group of his own.
    One that starts may be in the idle group of its server instead (v1).
    """
    lines = [line for line in text.splitlines() if f":{_FREEZER}:" not in line]
    limits = [each for each in folders if each.parent.parent.name != _FREEZER]
    tops = {each.parent.name for each in limits}
    ends = (*(f"/{each.parent.name}/{each.name}" for each in limits), *(f"/{top}_{IDLE}" for top in tops))
    return sum(line.endswith(ends) for line in lines) >= len(limits)


def kill(folders: Sequence[Path]) -> bool:
    """Send SIGKILL to all processes in these folders, by cgroup.kill or by pidfd; True if there is none.

    They compete from then on: behind others on a machine that is busy, a killed process ends seconds later."""
    if not _all_members(folders):
        return True
    for folder in folders:
        write_file(folder / IDLE_FILE, "0")
    killed = [write_file(folder / "cgroup.kill", "1") for folder in folders]
    if not all(killed):
        _kill_frozen(folders)
    return False


def _kill_frozen(folders: Sequence[Path]) -> None:
    states = [folder / "freezer.state" for folder in folders]
    for state in states:
        write_file(state, "FROZEN")  # so that no process forks between the listing and the signal
    try:
        _kill_members(folders)
    finally:
        for state in states:
            write_file(state, "THAWED")


def _kill_members(folders: Sequence[Path]) -> None:
    with contextlib.ExitStack() as stack:
        pidfds: dict[int, int] = {}
        for pid in _all_members(folders):
            with contextlib.suppress(OSError):  # it has exited, or we are out of descriptors: the caller tries again
                pidfds[pid] = os.pidfd_open(pid)
                stack.callback(os.close, pidfds[pid])
        # A pid that is still listed belongs to the process of its pidfd or to another member, never to a stranger.
        for pid in _all_members(folders) & pidfds.keys():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfds[pid], signal.SIGKILL)


def _all_members(folders: Sequence[Path]) -> set[int]:
    pids = {int(line) for folder in folders for line in read_file(folder / PROCS).split()}
    return pids - {0, os.getpid()}


def remove_all(folders: Sequence[Path]) -> bool:
    """Remove folders; False if processes are left in one, True also if they do not exist."""
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
    """The text of a file in /sys or /proc; empty if it cannot be read."""
    try:
        return read_kernel_file(path)
    except OSError:
        return ""


def write_file(path: Path, text: str) -> bool:
    """Write to a file in /sys; False if it does not exist or the kernel refuses. Never creates a file."""
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
    """The value of `name` in a file of `name value` lines; 0 if it is missing."""
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0
