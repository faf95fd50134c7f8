"""Reads one worker's status page whenever its liveness can have changed, and reports the first failure.

A dead process is not judged: its exit says more.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from mmsup.supervisor.instances import liveness
from mmsup.supervisor.instances.liveness import NS, Hung, LivenessLimits, LoadTimeout
from mmsup.supervisor.processes.child_process import ChildProcess

MIN_INTERVAL_NS: Final = NS // 50


class LivenessProbe:
    """For one process, from its start to its end. `on_failure` is called once, with the first failure."""

    def __init__(
        self, process: ChildProcess, limits: LivenessLimits, on_failure: Callable[[Hung | LoadTimeout], None]
    ) -> None:
        self._process = process
        self._limits = limits
        self._on_failure = on_failure
        self._times = liveness.PageTimes()
        self._is_closed = False
        self._timer: asyncio.TimerHandle | None = None
        self.check()

    def close(self) -> None:
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
        match liveness.judge(progress, self._limits, oldest_pending_s, now_ns):
            case Hung() | LoadTimeout() as failure:
                self.close()
                # Tested after the page was read: an exit in between would look like a hang.
                if not self._process.is_dead:
                    self._on_failure(failure)
            case liveness.Alive():
                wait_ns = max(liveness.next_check_ns(progress, self._limits, now_ns) - now_ns, MIN_INTERVAL_NS)
                self._timer = asyncio.get_running_loop().call_later(wait_ns / NS, self.check)
