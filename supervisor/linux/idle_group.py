"""The control group of processes that start: they run only while nobody else wants the processor (`cpu.idle`).

The kernel preempts it at once for whoever wakes up, and takes a processor that it alone uses for a free one. Being a
share of the group and not of a thread (SCHED_IDLE, nice), it binds threads and children too, and to leave it takes no
privilege but that of writing into the group. It is a sibling of the groups of those who serve: within one of these it
would run with that one's share. A move out of it takes 8 to 16 ms (the kernel waits for all processors), so that it is
made once a start, and the groups of v2, which have a share of their own, change that instead (cgroup.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mmsup.supervisor.linux.cgroup import IDLE, IDLE_FILE, PROCS, Cgroup, kill, read_file, remove_all, write_file

MOVES: Final = 16
"""Passes over a group whose processes fork: each finds only what was forked during the one before."""


@dataclass(frozen=True, slots=True)
class IdleGroup:
    """One for each server; made by the keeper, and left by what the controller moves out of it."""

    folder: Path
    home: Path
    """The folder in which keeper, controller and gateways run."""

    @property
    def procs_file(self) -> str:
        """The file by which a child joins it: in `Spawn.procs_files`."""
        return str(self.folder / PROCS)

    @property
    def exists(self) -> bool:
        return read_file(self.folder / IDLE_FILE).strip() == "1"

    def kill(self) -> bool:
        """Send SIGKILL to all that is in it, which competes from then on; True if there is nothing."""
        return kill([self.folder])

    def make(self) -> None:
        """Make it, without a process in it; nothing is left where the kernel or the privileges do not allow it."""
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError:
            return
        if not (write_file(self.folder / IDLE_FILE, "1") and self.exists):
            self.remove()

    def remove(self) -> bool:
        return remove_all([self.folder])

    def admit(self, group: Cgroup) -> tuple[str, ...]:
        """Let a new group of a worker start idle; returns what its first process has to join."""
        if self._is_sibling(group):
            write_file(group.folders[0] / IDLE_FILE, "1")
            return group.procs_files
        others = [each for each in group.folders if each.parent.parent != self.folder.parent]
        return (*(str(each / PROCS) for each in others), self.procs_file)

    def enter(self, group: Cgroup) -> None:
        """Let a group of a worker that runs already be idle."""
        if self._is_sibling(group):
            write_file(group.folders[0] / IDLE_FILE, "1")
            return
        for _ in range(MOVES):  # those that forked meanwhile left their children behind
            outside = group.pids() - {int(each) for each in read_file(self.folder / PROCS).split()}
            for pid in outside:
                write_file(self.folder / PROCS, str(pid))
            if not outside:
                break

    def release(self, group: Cgroup) -> None:
        """Let a group of a worker compete; no effect if it does."""
        if self._is_sibling(group):
            write_file(group.folders[0] / IDLE_FILE, "0")
            return
        for folder in group.folders:
            if folder.parent.parent == self.folder.parent:
                for _ in range(MOVES):  # those that forked meanwhile left their children behind
                    if not self.move_out(group.pids(), folder):
                        break

    def move_out(self, pids: Iterable[int], to: Path | None = None) -> bool:
        """Move those of these processes that are in it to another folder, by default `home`; whether there were any."""
        inside = {int(each) for each in read_file(self.folder / PROCS).split()} & set(pids)
        for pid in inside:
            write_file((to or self.home) / PROCS, str(pid))
        return bool(inside)

    def _is_sibling(self, group: Cgroup) -> bool:
        """Whether the group is one of v2, which has a share of its own beside this one."""
        return bool(group.folders) and group.folders[0].parent == self.folder.parent


def is_idle_group(procs_file: str) -> bool:
    """Whether this is the file of an idle group, which belongs to no child alone."""
    return Path(procs_file).parent.name.rpartition("_")[2] == IDLE
