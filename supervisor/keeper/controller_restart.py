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
from mmsup.ipc.failpoints import failpoint
from mmsup.ipc.messages.keeper_control import ChildExited, Spawn
from mmsup.supervisor.keeper.controller_process import ControllerProcess
from mmsup.supervisor.linux import process_tree
from mmsup.supervisor.observability.console import Console
from mmsup.supervisor.processes.backoff import MAX_EXITS, Exit, server_delay_s

OOM_SCORE_ADJ: Final = -900
"""Keeper and brain: the kernel takes any worker first."""
STEP_DOWN_LIMIT_S: Final = 5.0
"""How long a brain that was relieved may take to leave."""


class ControllerListener(Protocol):
    """Whom a brain talks to."""

    def on_controller_start(self) -> None:
        """A brain has been started: tell it what there is."""
        ...

    def on_message(self, message: Any) -> None:  # one of TO_KEEPER
        """The brain asks for this."""
        ...


class ControllerRestart:
    """The brain there is, or the time until there is one."""

    def __init__(
        self,
        argv: Sequence[str],
        inherited: Mapping[str, int],
        selector: selectors.BaseSelector,
        console: Console,
        court: ControllerListener,
        generation: int = 0,
    ) -> None:
        """`inherited`: what each brain gets beside its own channel; `generation`: how many there were already."""
        self._argv = tuple(argv)
        self._inherited = inherited
        self._selector = selector
        self._console = console
        self._listener = court
        self._controller: ControllerProcess | None = None
        self.generation = generation
        """How many brains there were, the present one included."""
        self._due_s = 0.0
        self._exits: list[Exit] = []
        self._is_last = False
        self._step_down_by_s = float("inf")
        self._rng = random.Random()

    @property
    def pid(self) -> int:
        """The brain's process; 0 while there is none."""
        return self._controller.pid if self._controller is not None else 0

    @property
    def due_s(self) -> float:
        """When `tend` has something to do."""
        return self._due_s if self._controller is None else min(self._controller.heartbeat_due_s, self._step_down_by_s)

    def check(self, now_s: float) -> None:
        """Start a brain if there should be one, end it if it is one no more. Called in each turn of the loop."""
        brain = self._controller
        if brain is None:
            if now_s >= self._due_s:
                self._start(now_s)
        elif why := self._kill_reason(brain, now_s):
            self._console.log("error", "brain_killed", pid=brain.pid, text=why)
            self.kill()
        elif brain in self._selector.get_map():
            interest = selectors.EVENT_READ | (selectors.EVENT_WRITE if brain.has_pending else 0)
            self._selector.modify(brain, interest, self._on_readable)

    def send(self, message: object, descriptors: Sequence[int] = ()) -> None:
        """Say it to the brain; what is said while there is none, the next one learns from its greeting."""
        if self._controller is not None:
            self._controller.send(message, descriptors)

    def stop_restarting(self) -> None:
        """No other brain follows: the next end is the one that was wanted."""
        self._is_last = True

    def replace(self, message: object) -> None:
        """Tell the present brain to leave, for the next one to follow at once: that is no fall."""
        self._step_down_by_s = time.monotonic() + STEP_DOWN_LIMIT_S
        self.send(message)

    def start_now(self) -> None:
        """Whatever the curve says, a brain is wanted now: somebody has to end things in good order."""
        self._due_s = 0.0

    def kill(self) -> None:
        """End the present one and hear nothing more from it."""
        self._step_down_by_s = float("inf")
        if self._controller is not None:
            self._unregister(self._controller)
            self._controller.kill()

    def on_exit(self, ended: ChildExited) -> None:
        """The brain is dead and about to be reaped: hear its last words, end its session, set the next one's time."""
        brain = self._controller
        assert brain is not None, "nobody is there to die"
        now_s = time.monotonic()
        while messages := brain.receive(now_s):  # `Finished` may be the last thing a brain says
            for message in messages:
                self._listener.on_message(message)
        failpoint("keeper.brain_died")
        self._unregister(brain)
        process_tree.end_session(brain.pid)
        self._controller = None
        text = brain.close()
        was_relieved, self._step_down_by_s = self._step_down_by_s < float("inf"), float("inf")
        if self._is_last:
            return
        if was_relieved and not ended.signal and ended.status == exit_codes.SUCCESS:
            self._due_s = now_s
            self._console.log("info", "brain_relieved", pid=brain.pid)
            return
        wait_s = self._schedule_next(now_s - brain.started_s, now_s)
        how = f"signal {ended.signal}" if ended.signal else f"exit {ended.status}"
        self._console.log("warning", "brain_exit", pid=brain.pid, cause=how, text=text, next_s=round(wait_s, 3))

    def _start(self, now_s: float) -> None:
        self.generation += 1
        spawn = Spawn(
            token=f"brain.{self.generation}",
            argv=self._argv,
            env=dict(os.environ),
            cwd=".",
            procs_files=(),
            listeners=(),
            counter_tables=False,
            oom_score_adj=OOM_SCORE_ADJ,
            note="",
        )
        try:
            self._controller = ControllerProcess(spawn, self._inherited, now_s)
        except OSError as error:
            wait_s = self._schedule_next(0.0, now_s)
            self._console.log("error", "brain_failed", text=str(error), next_s=round(wait_s, 3))
            return
        failpoint("keeper.brain_started")
        self._selector.register(self._controller, selectors.EVENT_READ, self._on_readable)
        self._console.log("info", "brain_start", pid=self._controller.pid, generation=self.generation)
        self._listener.on_controller_start()
        failpoint("keeper.brain_greeted")

    def _kill_reason(self, brain: ControllerProcess, now_s: float) -> str:
        """Why it is to be ended now. One that was relieved may hang up, and be silent, while it leaves."""
        if self._step_down_by_s == float("inf"):
            return brain.kill_reason(now_s)
        return "does not step down" if now_s >= self._step_down_by_s else ""

    def _on_readable(self) -> None:
        brain = self._controller
        if brain is None:
            return
        brain.flush()
        now_s = time.monotonic()
        for message in brain.receive(now_s):
            self._listener.on_message(message)
        if brain.kill_reason(now_s):
            self._unregister(brain)  # the end of a channel would be readable for ever

    def _unregister(self, brain: ControllerProcess) -> None:
        if brain in self._selector.get_map():
            self._selector.unregister(brain)

    def _schedule_next(self, lived_s: float, now_s: float) -> float:
        """Count one fall, and set the time of the next brain."""
        self._exits.append(Exit(now_s, lived_s))
        del self._exits[:-MAX_EXITS]
        wait_s = server_delay_s(self._exits, self._rng)
        self._due_s = now_s + wait_s
        return wait_s
