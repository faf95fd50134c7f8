"""How long a process that starts stays behind those who serve: until it is ready, or has waited for the processor too
long.

What is bounded is the time that it was ready to run while others ran, and not the time since its start: where a
processor is free it may take as long as it takes, and where none is it is not later by more than the bound.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from mmsup.supervisor.linux.process_activity import NS, ProcessActivity, read_activity
from mmsup.supervisor.processes.stall_clock import queued_ns

AWAITED_S: Final = 0.2
"""Bound for one that follows another, and for which its callers wait."""
SPARE_S: Final = 1.0
"""Bound for one that nobody was served by, or whose work others do meanwhile."""
LOOK_S: Final = 0.1
"""Between two looks; the bound is exceeded by at most as much."""
FREE_S: Final = 0.05
"""One that is forked goes behind others when it has used so much of the processor: without the model's own part it uses
10 ms, and a move into the group and out of it takes the controller twice as long."""


def bound_s(*, does_any_serve: bool, does_same_serve: bool, has_served: bool) -> float:
    """The bound for a worker; 0: it competes from the beginning. Pure.

    `does_any_serve`: some worker of the server does; `does_same_serve`: another one of its model and version;
    `has_served`: one of these did before, or its model is loaded for requests that wait."""
    if not does_any_serve:
        return 0.0  # there is nobody to yield to, as when the server starts
    return AWAITED_S if has_served and not does_same_serve else SPARE_S


class QueueClock:
    """Adds up how long a process was ready to run while others ran. Pure."""

    def __init__(self) -> None:
        self.queued_s = 0.0
        self._last: ProcessActivity | None = None

    def add(self, seen: ProcessActivity) -> None:
        """One more look; one without threads is at a process of which nothing is known yet, which counts as waiting."""
        if self._last is not None:
            waited_ns = queued_ns(self._last, seen) if self._last.threads else seen.at_ns - self._last.at_ns
            self.queued_s += waited_ns / NS
        self._last = seen


class IdleStart:
    """Of one process, from its start until `end` is called, by itself at the bound."""

    def __init__(
        self,
        bound_s: float,
        release: Callable[[], object],
        pid: int = 0,
        enter: Callable[[], object] | None = None,
    ) -> None:
        """`release`: lets the process compete; called once. `pid`: 0 until the keeper has told it. `enter`: of a
        process that is forked, makes it idle; called when it has used FREE_S, and before `release`."""
        self.pid = pid
        self._enter = enter
        self._bound_s = bound_s
        self._release = release
        self._clock = QueueClock()
        self._since_ns = time.monotonic_ns()
        self._timer: asyncio.TimerHandle | None = None
        if enter is None:
            self._look()
        else:
            self._look_again()

    def end(self) -> None:
        """It is ready, or somebody waits for it now."""
        if self._timer is not None:
            self.cancel()
            if self._enter is None:
                self._release()

    def cancel(self) -> None:
        """It is gone."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        seen = read_activity(self.pid, (), self._since_ns) if self.pid else ProcessActivity(time.monotonic_ns())
        if self._enter is None:
            self._clock.add(seen)
        elif seen.cpu_ns >= FREE_S * NS:
            self._enter()
            self._enter = None
        self._look_again()
        if self._clock.queued_s >= self._bound_s:
            self.end()

    def _look_again(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(LOOK_S, self._look)
