"""What a child leaves behind: the rest of its session, and orphans that became the keeper's own children.

Everything here is signalled by pidfd after a second look, never by number alone. A session's number is safe to search
for while its leader is alive or not yet reaped; so the keeper ends a session first and reaps its leader then.
A process that has left its parent's session is found by its control group (group.py), or at the keeper's end.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

ROUNDS: Final = 16
"""How often a session is searched again for what was forked meanwhile; a fork bomb is the pids limit's business."""


@dataclass(frozen=True, slots=True)
class ProcStat:
    """What /proc says of one process."""

    state: str
    parent: int
    session: int


def read_stat(pid: int) -> ProcStat | None:
    """The process of this number, None if there is none."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            # The name in brackets may hold anything, brackets too.
            fields = file.read().rpartition(")")[2].split()
    except OSError:  # gone, or we are short of descriptors: then it cannot be looked at now
        return None
    return ProcStat(fields[0], int(fields[1]), int(fields[3]))


def signal_session(leader: int, number: int) -> None:
    """Signal everything in the session of `leader`, itself included."""
    _signal_all(lambda kin: kin.session == leader, number)


def end_session(leader: int) -> None:
    """Kill everything in the session of `leader`, which is dead and not yet reaped."""
    seen: set[int] = set()
    for _ in range(ROUNDS):
        # Whoever has met SIGKILL forks no more, so a round without a new face is the last.
        found = _signal_all(lambda kin: kin.session == leader and kin.state != "Z", signal.SIGKILL)
        if found <= seen:
            return
        seen |= found


def end_children(parent: int) -> bool:
    """Kill all children of `parent` that live; True if there was none."""
    return not _signal_all(lambda kin: kin.parent == parent and kin.state != "Z", signal.SIGKILL)


def _signal_all(chosen: Callable[[ProcStat], bool], number: int) -> set[int]:
    """Signal all chosen processes; who they were."""
    try:
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return set()
    return {pid for pid in pids if _matches(pid, chosen) and _signal(pid, chosen, number)}


def _matches(pid: int, chosen: Callable[[ProcStat], bool]) -> bool:
    kin = read_stat(pid)
    return kin is not None and chosen(kin)


def _signal(pid: int, chosen: Callable[[ProcStat], bool], number: int) -> bool:
    with contextlib.suppress(OSError):
        pidfd = os.pidfd_open(pid)
        try:
            # Now that the descriptor holds it, whoever has the number is the one that is signalled.
            if _matches(pid, chosen):
                signal.pidfd_send_signal(pidfd, number)
                return True
        finally:
            os.close(pidfd)
    return False
