"""Looks at one worker's status page when it can first matter, and says what health.py makes of it.

The dead are not judged: why they ended, their exit says.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from mmsup.supervisor.instances.liveness import NS, Alive, Hung, Limits, LoadTimeout, Slow, Times, judge, look_ns
from mmsup.supervisor.processes.child_process import Life

SHORTEST_NS: Final = NS // 50


class Watch:
    """Over one life, from its start to its end. `tell` is called with the first bad verdict, and then no more."""

    def __init__(self, life: Life, limits: Limits, tell: Callable[[Hung | LoadTimeout], None]) -> None:
        self._life = life
        self._limits = limits
        self._tell = tell
        self._times = Times()
        self._over = False
        self._timer: asyncio.TimerHandle | None = None
        self._look(None)

    def overdue(self, age_s: float) -> None:
        """A gateway has waited so long for the oldest request, with nothing coming back."""
        self._look(age_s)

    def close(self) -> None:
        """It is condemned or dead: there is nothing to be found any more."""
        self._over = True
        if self._timer is not None:
            self._timer.cancel()

    def _look(self, oldest_pending_s: float | None) -> None:
        if self._over:
            return
        if self._timer is not None:
            self._timer.cancel()
        now_ns = time.monotonic_ns()
        progress = self._times.believed(self._life.progress(), now_ns)
        match judge(progress, self._limits, oldest_pending_s, now_ns):
            case Hung() | LoadTimeout() as verdict:
                self.close()
                # Asked after its page was read: a death in between would look like one that had stood still.
                if not self._life.dead:
                    self._tell(verdict)
            case Alive() | Slow():
                wait_ns = max(look_ns(progress, self._limits, now_ns) - now_ns, SHORTEST_NS)
                self._timer = asyncio.get_running_loop().call_later(wait_ns / NS, self._look, None)
