"""The processes of a session, and orphans that have become the keeper's children, found by a scan of /proc; signals.

A process is signalled through a pidfd, after a second check that it is the right one. A session id cannot be reused
while its leader is alive or not reaped, so the keeper ends a session before it reaps the leader. A process that has
left the session is found by its control group (cgroup.py), or when the keeper exits.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

_PF_EXITING: Final = 0x4  # linux/sched.h
ROUNDS: Final = 16
"""Scans for processes that were forked meanwhile; against a fork bomb there is the limit of tasks."""


@dataclass(frozen=True, slots=True)
class ProcStat:
    state: str
    parent: int
    session: int
    is_exiting: bool = False
    """It is on its way out of the kernel, which may take long where it has much memory."""


def read_stat(pid: int) -> ProcStat | None:
    """None if there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            # The name in brackets may contain brackets itself.
            fields = file.read().rpartition(")")[2].split()
    except OSError:  # it has exited, or we are out of descriptors
        return None
    return ProcStat(fields[0], int(fields[1]), int(fields[3]), bool(int(fields[6]) & _PF_EXITING))


def session_members(leaders: Iterable[int]) -> dict[int, set[int]]:
    """The living processes in the session of each leader, by one scan."""
    members: dict[int, set[int]] = {leader: set() for leader in leaders}
    for pid in _pids() if members else ():
        stat = read_stat(pid)
        if stat is not None and stat.session in members and stat.state != "Z":
            members[stat.session].add(pid)
    return members


def signal_session(leader: int, number: int) -> None:
    """Signal all processes in the session of `leader`, itself included."""
    _signal_all(lambda stat: stat.session == leader, number)


def end_session(leader: int) -> None:
    """Kill all processes in the session of `leader`, which has exited and is not reaped."""
    seen: set[int] = set()
    for _ in range(ROUNDS):
        # A killed process forks no more, so a scan that finds no new process is the last.
        found = _signal_all(lambda stat: stat.session == leader and stat.state != "Z", signal.SIGKILL)
        if found <= seen:
            return
        seen |= found


def end_children(parent: int) -> bool:
    """Kill all living children of `parent`; True if there was none."""
    return not _signal_all(lambda stat: stat.parent == parent and stat.state != "Z", signal.SIGKILL)


def _signal_all(chosen: Callable[[ProcStat], bool], number: int) -> set[int]:
    return {pid for pid in _pids() if _matches(pid, chosen) and _signal(pid, chosen, number)}


def _pids() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []


def _matches(pid: int, chosen: Callable[[ProcStat], bool]) -> bool:
    stat = read_stat(pid)
    return stat is not None and chosen(stat)


def _signal(pid: int, chosen: Callable[[ProcStat], bool], number: int) -> bool:
    with contextlib.suppress(OSError):
        pidfd = os.pidfd_open(pid)
        try:
            # The pidfd is open, so the process that has the pid now is the one that the signal reaches.
            if _matches(pid, chosen):
                signal.pidfd_send_signal(pidfd, number)
                return True
        finally:
            os.close(pidfd)
    return False
