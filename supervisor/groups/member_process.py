"""The process of a co-location group as one of its members sees it: its own channel and page, crash output of all."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable

from mmsup.ipc.memory.status_page import Progress
from mmsup.supervisor.groups import company
from mmsup.supervisor.processes.child_process import ChildListener, ChildProcess, CrashOutput


class MemberProcess(ChildProcess):
    def __init__(
        self,
        token: str,
        pid: int,
        descriptors: list[int],
        listener: ChildListener,
        crash: CrashOutput,
        others: Callable[[], Iterable[Progress]],
    ) -> None:
        """`descriptors`: pidfd, control, page. `crash`: of the process. `others`: pages of the other members."""
        super().__init__(token, pid, [*descriptors, _ended_pipe(), _ended_pipe()], listener)
        self.crash.output = crash
        self.listener = listener
        self._others = others

    def progress(self) -> Progress:
        return company.seen_beside(self.own_progress(), self._others(), time.monotonic_ns())

    def own_progress(self) -> Progress:
        """The page as it is."""
        return super().progress()


def _ended_pipe() -> int:
    """In the place of crash and output, which are those of the process."""
    read, write = os.pipe2(os.O_CLOEXEC)
    os.close(write)
    return read
