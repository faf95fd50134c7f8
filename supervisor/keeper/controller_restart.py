"""Keeps one controller running: starts it, watches its heartbeat, restarts it with backoff when it exits.

Also holds the checkpoint that one controller leaves to the next.
"""

from __future__ import annotations

import json
import random
import selectors
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

from mmsup.ipc import exit_codes
from mmsup.ipc.failpoints import failpoint
from mmsup.ipc.messages.keeper_control import CheckpointPart, ChildExited
from mmsup.ipc.transport.control_channel import MESSAGE_LIMIT
from mmsup.supervisor.keeper.controller_process import ControllerProcess
from mmsup.supervisor.keeper.spawn import own_process
from mmsup.supervisor.linux import process_tree
from mmsup.supervisor.observability.console import Console
from mmsup.supervisor.processes.backoff import MAX_EXITS, Exit, server_delay_s

OOM_SCORE_ADJ: Final = -900
"""For keeper and controller, so that the kernel's out-of-memory killer chooses any worker before them."""
STEP_DOWN_LIMIT_S: Final = 5.0
"""How long a controller may take to exit after StepDown."""
PART_BYTES: Final = MESSAGE_LIMIT - 1024
"""Of the entries of one message, as JSON."""
TOTAL_BYTES: Final = 64 << 20


class ControllerListener(Protocol):
    """The keeper, as ControllerRestart calls it."""

    def on_controller_start(self) -> None:
        """A controller was started: send it the inventory."""

    def on_message(self, message: Any) -> None: ...  # one of TO_KEEPER


class ControllerRestart:
    """The running controller, or the time at which the next one starts."""

    def __init__(
        self,
        argv: Sequence[str],
        inherited: Mapping[str, int],
        selector: selectors.BaseSelector,
        console: Console,
        listener: ControllerListener,
        generation: int = 0,
    ) -> None:
        """`inherited`: descriptors of every controller beside its own; `generation`: of the last one started."""
        self._argv = tuple(argv)
        self._inherited = inherited
        self._selector = selector
        self._console = console
        self._listener = listener
        self._controller: ControllerProcess | None = None
        self.generation = generation
        """Number of controllers started so far, the running one included."""
        self._due_s = 0.0
        self._exits: list[Exit] = []
        self._is_last = False
        self._step_down_by_s = float("inf")
        self._rng = random.Random()

    @property
    def pid(self) -> int:
        """0 while no controller runs."""
        return self._controller.pid if self._controller is not None else 0

    @property
    def due_s(self) -> float:
        """When `check` has something to do."""
        return self._due_s if self._controller is None else min(self._controller.heartbeat_due_s, self._step_down_by_s)

    def check(self, now_s: float) -> None:
        """Start a controller if one is due, kill one that fails. Called in each iteration of the keeper's loop."""
        if self._controller is not None and now_s >= self._controller.heartbeat_due_s:
            self._on_readable(now_s)  # what it sent while this process was busy, or waited for a processor, counts
        controller = self._controller
        if controller is None:
            if now_s >= self._due_s:
                self._start(now_s)
        elif reason := self._kill_reason(controller, now_s):
            self._console.log("error", "brain_killed", pid=controller.pid, text=reason)
            self.kill()
        elif controller in self._selector.get_map():
            interest = selectors.EVENT_READ | (selectors.EVENT_WRITE if controller.has_pending else 0)
            self._selector.modify(controller, interest, self._on_readable)

    def send(self, message: object, descriptors: Sequence[int] = ()) -> None:
        """Send to the running controller. Without one nothing is lost: the next one receives the inventory."""
        if self._controller is not None:
            self._controller.send(message, descriptors)

    def stop_restarting(self) -> None:
        """No controller follows the running one: the server ends."""
        self._is_last = True

    def replace(self, message: object) -> None:
        """Ask the controller to step down. The next one starts at once, and the exit does not count as a failure."""
        self._step_down_by_s = time.monotonic() + STEP_DOWN_LIMIT_S
        self.send(message)

    def start_now(self) -> None:
        """Skip the backoff: the server stops, and a controller must drain it."""
        self._due_s = 0.0

    def kill(self) -> None:
        """Kill the running controller and receive nothing more from it."""
        self._step_down_by_s = float("inf")
        if self._controller is not None:
            self._unregister(self._controller)
            self._controller.kill()

    def on_exit(self, exited: ChildExited) -> None:
        """Receive the last messages of an exited, unreaped controller, kill its session, schedule the next one."""
        controller = self._controller
        assert controller is not None, "no controller is running"
        now_s = time.monotonic()
        while messages := controller.receive(now_s):  # ShutdownFinished may be its last message
            for message in messages:
                self._listener.on_message(message)
        failpoint("keeper.brain_died")
        self._unregister(controller)
        process_tree.end_session(controller.pid)
        self._controller = None
        text = controller.close()
        was_replaced, self._step_down_by_s = self._step_down_by_s < float("inf"), float("inf")
        if self._is_last:
            return
        if was_replaced and not exited.signal and exited.status == exit_codes.SUCCESS:
            self._due_s = now_s
            self._console.log("info", "brain_relieved", pid=controller.pid)
            return
        wait_s = self._schedule_next(now_s - controller.started_s, now_s)
        cause = f"signal {exited.signal}" if exited.signal else f"exit {exited.status}"
        next_s = round(wait_s, 3)
        self._console.log("warning", "brain_exit", pid=controller.pid, cause=cause, text=text, next_s=next_s)

    def _start(self, now_s: float) -> None:
        self.generation += 1
        spawn = own_process(f"controller.{self.generation}", self._argv, OOM_SCORE_ADJ)
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

    def _kill_reason(self, controller: ControllerProcess, now_s: float) -> str:
        """After StepDown only the time limit counts: a closed channel and missing heartbeats are expected."""
        if self._step_down_by_s == float("inf"):
            return controller.kill_reason(now_s)
        return "does not step down" if now_s >= self._step_down_by_s else ""

    def _on_readable(self, now_s: float | None = None) -> None:
        """`now_s`: by default the time of this call."""
        controller = self._controller
        if controller is None:
            return
        controller.flush()
        now_s = time.monotonic() if now_s is None else now_s
        for message in controller.receive(now_s):
            self._listener.on_message(message)
        if controller.kill_reason(now_s):
            self._unregister(controller)  # a closed channel stays readable

    def _unregister(self, controller: ControllerProcess) -> None:
        if controller in self._selector.get_map():
            self._selector.unregister(controller)

    def _schedule_next(self, lived_s: float, now_s: float) -> float:
        """Count a failure, and set the time of the next start by the backoff of the server's own processes."""
        self._exits.append(Exit(now_s, lived_s))
        del self._exits[:-MAX_EXITS]
        wait_s = server_delay_s(self._exits, self._rng)
        self._due_s = now_s + wait_s
        return wait_s


class CheckpointStore:
    """The controller's checkpoint as the keeper holds it: texts by key, unread, within bounds."""

    def __init__(self, entries: Mapping[str, str]) -> None:
        self.entries = dict(entries)
        self._bytes = sum(_size(*each) for each in entries.items())

    def save(self, key: str, text: str) -> bool:
        """Hold this text under this key; an empty text removes the key. False beyond a bound: nothing has changed."""
        before = _size(key, self.entries[key]) if key in self.entries else 0
        after = _size(key, text) if text else 0
        if after > PART_BYTES or self._bytes - before + after > TOTAL_BYTES:
            return False
        self._bytes += after - before
        if text:
            self.entries[key] = text
        else:
            self.entries.pop(key, None)
        return True

    def parts(self) -> list[CheckpointPart]:
        """All entries, in messages that each fit into the channel."""
        parts: list[dict[str, str]] = []
        room = 0
        for key, text in self.entries.items():
            size = _size(key, text)
            if size > room:
                parts.append({})
                room = PART_BYTES
            parts[-1][key] = text
            room -= size
        return [CheckpointPart(each) for each in parts]


def _size(key: str, text: str) -> int:
    return len(json.dumps(key)) + len(json.dumps(text)) + 2
