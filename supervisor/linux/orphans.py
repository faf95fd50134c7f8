"""Processes that a model has started and that have left its session or its control group, found by an inherited mark.

When a worker exits, its children become the keeper's, which is a subreaper; when the keeper is killed, init's. The
first are found among the keeper's children at each exit of a worker, the others by a scan of /proc at the next start of
a server with the same state directory. The marks are those of worker_marks.py.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from mmsup.supervisor.linux.process_tree import read_stat
from mmsup.supervisor.linux.worker_marks import is_of_server, mark_number, read_mark, worker_mark

SEARCH_LIMIT_S: Final = 5.0
"""How long after an exit orphans are looked for while some are found: one in an unkillable state (D) may stay."""
START_LIMIT_S: Final = 2.0
POLL_S: Final = 0.005


def end_orphans_of(server: str) -> None:
    """At the start of a server, with its directories locked: kill what an earlier keeper's workers have left. Waits."""
    end_s = time.monotonic() + START_LIMIT_S
    while _kill(_all_pids(), lambda mark: is_of_server(mark, server)) and time.monotonic() < end_s:
        time.sleep(POLL_S)


class Orphans:
    """Those among the children of this process whose worker has exited."""

    def __init__(self, server: str, living_workers: Callable[[], Iterable[str]]) -> None:
        """`living_workers`: their names, as in the marks."""
        self._server = server
        self._living_workers = living_workers
        self._until_s = 0.0
        self._killed: set[int] = set()
        """Those that may not have exited yet."""

    @property
    def is_searching(self) -> bool:
        """`kill_again` is due every few milliseconds."""
        return time.monotonic() < self._until_s

    def on_worker_exit(self) -> None:
        self._until_s = time.monotonic() + SEARCH_LIMIT_S
        self.kill_again()

    def kill_again(self) -> None:
        """Kill those that are there: the children of a killed one come next, when it has exited. Ends after that."""
        if not self.is_searching:
            return
        # Looked at before the children are listed: what has exited by now has left its own children to this process.
        exiting = {pid for pid in self._killed if (stat := read_stat(pid)) is not None and stat.state not in "ZX"}
        living = {mark_number(worker_mark(self._server, each)) for each in self._living_workers()}
        found = _kill(_children(), lambda mark: is_of_server(mark, self._server) and mark not in living)
        self._killed = exiting | found
        if not self._killed:
            self._until_s = 0.0


def _kill(pids: Iterable[int], is_orphan: Callable[[int], bool]) -> set[int]:
    """Those that were killed."""
    return {pid for pid in pids if is_orphan(read_mark(pid)) and _kill_one(pid, is_orphan)}


def _kill_one(pid: int, is_orphan: Callable[[int], bool]) -> bool:
    with contextlib.suppress(OSError):
        pidfd = os.pidfd_open(pid)
        try:
            # The pidfd is open, so the process whose mark is read now is the one that the signal reaches.
            if is_orphan(read_mark(pid)):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                return True
        finally:
            os.close(pidfd)
    return False


def _children() -> list[int]:
    """Of this process, which has one thread."""
    own = os.getpid()
    with contextlib.suppress(OSError):  # the kernel may be built without it
        return [int(each) for each in Path(f"/proc/{own}/task/{own}/children").read_text().split()]
    return [pid for pid in _all_pids() if (stat := read_stat(pid)) is not None and stat.parent == own]


def _all_pids() -> list[int]:
    own = os.getpid()
    return [pid for name in os.listdir("/proc") if name.isdigit() and (pid := int(name)) != own]
