"""Reads one worker's status page whenever its liveness can have changed, and reports the first failure.

What runs, or is silent, for longer than a moment is looked at in /proc as well, a few times within each limit.

A dead process is not judged: its exit says more.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Final

from mmsup.ipc.memory.status_page import Progress
from mmsup.supervisor.instances import liveness
from mmsup.supervisor.instances.liveness import NS, FirstRuns, Hung, LivenessLimits, LoadTimeout
from mmsup.supervisor.linux.process_activity import read_activity
from mmsup.supervisor.processes.child_process import ChildProcess
from mmsup.supervisor.processes.stall_clock import StallClock

MIN_INTERVAL_NS: Final = NS // 50


class LivenessProbe:
    """For one process, from its start to its end. `on_failure` is called once, with the first failure."""

    def __init__(
        self,
        process: ChildProcess,
        limits: LivenessLimits,
        on_failure: Callable[[Hung | LoadTimeout], None],
        members: Callable[[], Iterable[int]] = tuple,
        first_runs: FirstRuns | None = None,
    ) -> None:
        """`members`: the processes of its control group. `first_runs`: of the workers of its version."""
        self._process = process
        self._limits = limits
        self._on_failure = on_failure
        self._members = members
        self._first_runs = first_runs or FirstRuns()
        self._first_was_long = False
        self._stall = StallClock()
        self._next_look_ns = 0
        self._times = liveness.PageTimes()
        self._is_closed = False
        self._timer: asyncio.TimerHandle | None = None
        self.check()

    def close(self) -> None:
        if not self._is_closed and not self._first_was_long:  # its first run may have ended since the last check
            self._first_runs.observe(self._process.progress(), self._limits, time.monotonic_ns())
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()

    def check(self, oldest_pending_s: float | None = None) -> None:
        """`oldest_pending_s`: age of a request of a gateway that has received nothing from the worker since."""
        if self._is_closed:
            return
        if self._timer is not None:
            self._timer.cancel()
        now_ns = time.monotonic_ns()
        progress = self._times.corrected(self._process.progress(), now_ns)
        stalled_s = self._look(progress, now_ns)
        if not self._first_was_long:
            self._first_was_long = self._first_runs.observe(progress, self._limits, now_ns)
        match liveness.judge(progress, self._limits, oldest_pending_s, now_ns, stalled_s):
            case Hung() | LoadTimeout() as failure:
                self.close()
                if liveness.is_first_run(progress):
                    self._first_runs.may_be_slow = False
                # Tested after the page was read: an exit in between would look like a hang.
                if not self._process.is_dead:
                    self._on_failure(failure)
            case liveness.Alive():
                next_ns = liveness.next_check_ns(progress, self._limits, now_ns, self._next_look_ns)
                wait_ns = max(next_ns - now_ns, MIN_INTERVAL_NS)
                self._timer = asyncio.get_running_loop().call_later(wait_ns / NS, self.check)

    def _look(self, progress: Progress, now_ns: int) -> float:
        """How long the worker has been without progress, after a look at what it does if one is due."""
        since_ns, stall = liveness.suspected_since_ns(progress, self._limits, now_ns), self._stall
        if since_ns is None:
            self._next_look_ns = 0
            stall.begin(0, self._limits.hang_s)
            return 0.0
        stall.begin(since_ns, self._limits.stall_s(progress))
        if now_ns >= self._next_look_ns or not stall.has_looked:
            stall.add(read_activity(self._process.pid, self._members(), since_ns))
            self._next_look_ns = stall.next_look_ns(now_ns)
        return stall.stalled_s
