"""Looks at one worker's status page when it can first matter, and says what health.py makes of it.

The dead are not judged: why they ended, their exit says.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from mmsup.supervisor.instances.liveness import (
    NS,
    Alive,
    Hung,
    LivenessLimits,
    LoadTimeout,
    PageTimes,
    Slow,
    judge,
    next_check_ns,
)
from mmsup.supervisor.processes.child_process import ChildProcess

MIN_INTERVAL_NS: Final = NS // 50


class LivenessProbe:
    """Over one life, from its start to its end. `tell` is called with the first bad verdict, and then no more."""

    def __init__(self, life: ChildProcess, limits: LivenessLimits, tell: Callable[[Hung | LoadTimeout], None]) -> None:
        self._life = life
        self._limits = limits
        self._tell = tell
        self._times = PageTimes()
        self._over = False
        self._timer: asyncio.TimerHandle | None = None
        self._check(None)

    def check_overdue(self, age_s: float) -> None:
        """A gateway has waited so long for the oldest request, with nothing coming back."""
        self._check(age_s)

    def close(self) -> None:
        """It is condemned or dead: there is nothing to be found any more."""
        self._over = True
        if self._timer is not None:
            self._timer.cancel()

    def _check(self, oldest_pending_s: float | None) -> None:
        if self._over:
            return
        if self._timer is not None:
            self._timer.cancel()
        now_ns = time.monotonic_ns()
        progress = self._times.corrected(self._life.progress(), now_ns)
        match judge(progress, self._limits, oldest_pending_s, now_ns):
            case Hung() | LoadTimeout() as verdict:
                self.close()
                # Asked after its page was read: a death in between would look like one that had stood still.
                if not self._life.is_dead:
                    self._tell(verdict)
            case Alive() | Slow():
                wait_ns = max(next_check_ns(progress, self._limits, now_ns) - now_ns, MIN_INTERVAL_NS)
                self._timer = asyncio.get_running_loop().call_later(wait_ns / NS, self._check, None)
