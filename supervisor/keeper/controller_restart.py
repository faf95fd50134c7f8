"""Brains follow one another: there is one, or the next is due, for ever, by the curve of the server's own parts.

Only the keeper uses this. It says how a new brain is greeted, and does what a brain asks.
"""

from __future__ import annotations

import os
import random
import selectors
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

from mmsup.ipc import exit_codes
from mmsup.ipc.failpoints import faultpoint
from mmsup.ipc.messages.keeper_control import Exited, Spawn
from mmsup.supervisor.keeper.controller_process import Hotline
from mmsup.supervisor.linux import process_tree
from mmsup.supervisor.observability.console import Console
from mmsup.supervisor.processes.backoff import HISTORY, End, part_delay_s

OOM_SCORE: Final = -900
"""Keeper and brain: the kernel takes any worker first."""
LEAVE_S: Final = 5.0
"""How long a brain that was relieved may take to leave."""


class Court(Protocol):
    """Whom a brain talks to."""

    def greet(self) -> None:
        """A brain has been started: tell it what there is."""
        ...

    def do(self, message: Any) -> None:  # one of TO_KEEPER
        """The brain asks for this."""
        ...


class Succession:
    """The brain there is, or the time until there is one."""

    def __init__(
        self,
        argv: Sequence[str],
        inherited: Mapping[str, int],
        selector: selectors.BaseSelector,
        console: Console,
        court: Court,
        generation: int = 0,
    ) -> None:
        """`inherited`: what each brain gets beside its own channel; `generation`: how many there were already."""
        self._argv = tuple(argv)
        self._inherited = inherited
        self._selector = selector
        self._console = console
        self._court = court
        self._brain: Hotline | None = None
        self.generation = generation
        """How many brains there were, the present one included."""
        self._due_s = 0.0
        self._ends: list[End] = []
        self._last = False
        self._leave_by_s = float("inf")
        self._rng = random.Random()

    @property
    def pid(self) -> int:
        """The brain's process; 0 while there is none."""
        return self._brain.pid if self._brain is not None else 0

    @property
    def due_s(self) -> float:
        """When `tend` has something to do."""
        return self._due_s if self._brain is None else min(self._brain.silent_at_s, self._leave_by_s)

    def tend(self, now_s: float) -> None:
        """Start a brain if there should be one, end it if it is one no more. Called in each turn of the loop."""
        brain = self._brain
        if brain is None:
            if now_s >= self._due_s:
                self._start(now_s)
        elif why := self._trouble(brain, now_s):
            self._console.say("error", "brain_killed", pid=brain.pid, text=why)
            self.kill()
        elif brain in self._selector.get_map():
            interest = selectors.EVENT_READ | (selectors.EVENT_WRITE if brain.pending else 0)
            self._selector.modify(brain, interest, self._listen)

    def tell(self, message: object, descriptors: Sequence[int] = ()) -> None:
        """Say it to the brain; what is said while there is none, the next one learns from its greeting."""
        if self._brain is not None:
            self._brain.tell(message, descriptors)

    def retire(self) -> None:
        """No other brain follows: the next end is the one that was wanted."""
        self._last = True

    def relieve(self, message: object) -> None:
        """Tell the present brain to leave, for the next one to follow at once: that is no fall."""
        self._leave_by_s = time.monotonic() + LEAVE_S
        self.tell(message)

    def hurry(self) -> None:
        """Whatever the curve says, a brain is wanted now: somebody has to end things in good order."""
        self._due_s = 0.0

    def kill(self) -> None:
        """End the present one and hear nothing more from it."""
        self._leave_by_s = float("inf")
        if self._brain is not None:
            self._deafen(self._brain)
            self._brain.kill()

    def died(self, ended: Exited) -> None:
        """The brain is dead and about to be reaped: hear its last words, end its session, set the next one's time."""
        brain = self._brain
        assert brain is not None, "nobody is there to die"
        now_s = time.monotonic()
        while messages := brain.hear(now_s):  # `Finished` may be the last thing a brain says
            for message in messages:
                self._court.do(message)
        faultpoint("keeper.brain_died")
        self._deafen(brain)
        process_tree.end_session(brain.pid)
        self._brain = None
        text = brain.close()
        was_relieved, self._leave_by_s = self._leave_by_s < float("inf"), float("inf")
        if self._last:
            return
        if was_relieved and not ended.signal and ended.status == exit_codes.DONE:
            self._due_s = now_s
            self._console.say("info", "brain_relieved", pid=brain.pid)
            return
        wait_s = self._next(now_s - brain.started_s, now_s)
        how = f"signal {ended.signal}" if ended.signal else f"exit {ended.status}"
        self._console.say("warning", "brain_exit", pid=brain.pid, cause=how, text=text, next_s=round(wait_s, 3))

    def _start(self, now_s: float) -> None:
        self.generation += 1
        spawn = Spawn(
            token=f"brain.{self.generation}",
            argv=self._argv,
            env=dict(os.environ),
            cwd=".",
            procs_files=(),
            listeners=(),
            tallies=False,
            oom_score_adj=OOM_SCORE,
            note="",
        )
        try:
            self._brain = Hotline(spawn, self._inherited, now_s)
        except OSError as error:
            wait_s = self._next(0.0, now_s)
            self._console.say("error", "brain_failed", text=str(error), next_s=round(wait_s, 3))
            return
        faultpoint("keeper.brain_started")
        self._selector.register(self._brain, selectors.EVENT_READ, self._listen)
        self._console.say("info", "brain_start", pid=self._brain.pid, generation=self.generation)
        self._court.greet()
        faultpoint("keeper.brain_greeted")

    def _trouble(self, brain: Hotline, now_s: float) -> str:
        """Why it is to be ended now. One that was relieved may hang up, and be silent, while it leaves."""
        if self._leave_by_s == float("inf"):
            return brain.trouble(now_s)
        return "does not step down" if now_s >= self._leave_by_s else ""

    def _listen(self) -> None:
        brain = self._brain
        if brain is None:
            return
        brain.flush()
        now_s = time.monotonic()
        for message in brain.hear(now_s):
            self._court.do(message)
        if brain.trouble(now_s):
            self._deafen(brain)  # the end of a channel would be readable for ever

    def _deafen(self, brain: Hotline) -> None:
        if brain in self._selector.get_map():
            self._selector.unregister(brain)

    def _next(self, lived_s: float, now_s: float) -> float:
        """Count one fall, and set the time of the next brain."""
        self._ends.append(End(now_s, lived_s))
        del self._ends[:-HISTORY]
        wait_s = part_delay_s(self._ends, self._rng)
        self._due_s = now_s + wait_s
        return wait_s
