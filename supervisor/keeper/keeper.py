"""The keeper: parent of every process of a server. It starts, reaps, signals and holds; it decides nothing.

    python -m mmsup.supervisor.keeper settings=FD

It holds what must outlive a brain: the locks, the listening sockets, the tallies, and of each child the five
descriptors of charge.py. It starts the brain, tells it what there is, does what it asks, and starts another one when
it falls. When the keeper dies, everything dies with it: by the parent-death signal, by the end of the lifeline; what
slips both (a process that a model started) is found in our control groups by the next keeper.

Standard library only, one thread, one loop. Nothing in it waits for a child, or for the brain.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any, Final

from mmsup.ipc import exit_codes
from mmsup.ipc.failpoints import failpoint, inherited_descriptors
from mmsup.ipc.memory.counters import make_counter_table
from mmsup.ipc.messages.keeper_control import (
    ChildExited,
    ForgetChild,
    Heartbeat,
    KeeperInventory,
    NotifySystemd,
    ReloadRequested,
    RequestUpgrade,
    SaveCheckpoint,
    ShutdownFinished,
    SignalChild,
    Spawn,
    StepDown,
    TerminateRequested,
    UpgradeRefused,
)
from mmsup.ipc.transport.control_channel import MESSAGE_LIMIT
from mmsup.ipc.transport.dataclass_codec import to_json
from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.keeper import reexec
from mmsup.supervisor.keeper.bootstrap_premises import HeldResources
from mmsup.supervisor.keeper.children import Children
from mmsup.supervisor.keeper.controller_restart import ControllerRestart
from mmsup.supervisor.keeper.listeners import CONTROL
from mmsup.supervisor.keeper.preflight import Preflight
from mmsup.supervisor.keeper.reexec import KeeperState
from mmsup.supervisor.linux import process_tree

STOP_MARGIN_S: Final = 15.0
"""Beyond the drain that the settings allow: a brain that has not finished then never will."""
CLEANUP_INTERVAL_S: Final = 0.02
"""How often a dead child's control group is looked at until nobody is left in it."""
IDLE_S: Final = 60.0
"""A turn of the loop with nothing to do; for ever is not a time that a selector knows."""
KILL_LIMIT_S: Final = 5.0
"""What the last killing may take; a process in an unkillable state is not waited for longer."""
CONTROLLER_EXIT_LIMIT_S: Final = 1.0
"""How long a brain that has finished may take to leave."""


@dataclass(frozen=True, slots=True)
class KeeperProgram:
    """What the keeper runs. `settings`: as they came; `brain`: the command that becomes one; `code`: its own digest."""

    settings: str
    controller: tuple[str, ...]
    build_id: str


class Keeper:
    """The loop, and what it holds."""

    def __init__(self, program: KeeperProgram, premises: HeldResources, estate: KeeperState | None = None) -> None:
        """`estate`: what the program left that was the keeper before, in this process."""
        self._program = program
        self._settings = Settings.from_json(program.settings)
        self._resources = premises
        self._listeners = premises.listeners
        self._notifier = premises.notifier
        self._console = premises.console
        self._selector = selectors.DefaultSelector()
        # Invariant: nobody but this process holds `_life_end`, so that its death ends every reader's wait.
        self._lifeline, self._lifeline_writer = (
            (estate.lifeline, estate.lifeline_writer) if estate else os.pipe2(os.O_CLOEXEC)
        )
        self._counter_tables = list(estate.counter_tables) if estate else []
        self._counter_tables += [
            make_counter_table() for _ in range(self._settings.gateway_seats - len(self._counter_tables))
        ]
        self._generation = estate.keeper_generation + 1 if estate else 1
        self._children = Children(self._selector, self._lifeline, self._shared_descriptors, self._send)
        self._checkpoint = estate.checkpoint if estate else ""
        self._preflight: Preflight | None = None
        self._is_reexec_due = False
        """This program is to be followed by the one on disk, once no brain is there."""
        self._signals: list[int] = []
        self._stop_by_s = float("inf")
        self._watchdog_s = float("inf")
        self._exit_code: int | None = None
        control = self._listeners.fileno(CONTROL)
        inherited = {"lifeline": self._lifeline, "listen:control": control, **inherited_descriptors()}
        brains = estate.controller_generation if estate else 0
        self._controller = ControllerRestart(program.controller, inherited, self._selector, self._console, self, brains)
        if estate is not None:
            self._children.restore(estate.children, estate.dying_groups)
            failpoint("keeper.taken_over")

    def run(self) -> int:
        """Keep until somebody says the end; the exit code. Nothing that was started is left then."""
        self._install_signal_handlers()
        if self._notifier.watchdog_s:
            self._watchdog_s = 0.0
        while self._exit_code is None:
            self._run_timers(time.monotonic())
            if self._is_reexec_due and not self._controller.pid:
                self._reexec()
            self._controller.check(time.monotonic())
            rehearsed_by_s = self._preflight.deadline_s if self._preflight else float("inf")
            self._wait(min(self._stop_by_s, self._watchdog_s, self._controller.due_s, rehearsed_by_s))
        return self._kill_all(self._exit_code)

    def _run_timers(self, now_s: float) -> None:
        if now_s >= self._watchdog_s:
            self._notifier.send("WATCHDOG=1")
            self._watchdog_s = now_s + self._notifier.watchdog_s
        if now_s >= self._stop_by_s:
            self._console.log("error", "stop_timeout", text="the drain did not end in time")
            self._finish(exit_codes.REFUSED)
        if self._preflight is not None and now_s >= self._preflight.deadline_s:
            self._preflight.kill()
        self._children.kill_dying_groups()

    def _wait(self, until_s: float) -> None:
        wait_s = min(until_s - time.monotonic(), CLEANUP_INTERVAL_S if self._children.has_dying_groups else IDLE_S)
        for key, _ in self._selector.select(max(0.0, wait_s)):
            key.data()
        self._handle_signals()

    # What comes from outside.

    def _install_signal_handlers(self) -> None:
        """From now on a signal is noted by its handler, and ends the wait by a byte at the wakeup socket."""
        wakeup, write = socket.socketpair()
        for end in (wakeup, write):
            end.setblocking(False)  # noqa: FBT003 - the standard library's own signature
        # The bytes say no more than that: when the socket is full, as after many deaths at once, others are lost.
        signal.set_wakeup_fd(write.detach(), warn_on_full_buffer=False)
        self._selector.register(wakeup, selectors.EVENT_READ, lambda: wakeup.recv(4096))
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, self._on_signal)
        # The program before this one has blocked all: none was lost, and who died meanwhile is there to be reaped.
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        self._signals.append(signal.SIGCHLD)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signature of handlers
        self._signals.append(number)

    def _handle_signals(self) -> None:
        while self._signals:
            match self._signals.pop(0):
                case signal.SIGCHLD:
                    self._reap()
                case signal.SIGHUP:
                    self._controller.send(ReloadRequested())
                case _:
                    self._stop()

    def _stop(self) -> None:
        if self._stop_by_s < float("inf"):
            self._console.log("warning", "stop_forced", text="told to stop twice")
            self._finish(exit_codes.REFUSED)
            self._controller.kill()
            return
        self._console.log("info", "stopping")
        self._notifier.send("STOPPING=1")
        self._stop_by_s = time.monotonic() + self._settings.exit_timeout_s + STOP_MARGIN_S
        self._controller.send(TerminateRequested())
        failpoint("keeper.stopping")
        self._controller.start_now()

    def _finish(self, code: int) -> None:
        if self._exit_code is None:
            self._exit_code = code
            self._controller.stop_restarting()
            failpoint("keeper.finished")

    def _reap(self) -> None:
        """Take in everybody who died. The number of the dead is not given away before its session has ended."""
        while (found := _next_exited()) is not None:
            token = self._children.token_of(found.si_pid)
            if found.si_pid == self._controller.pid:
                self._cancel_preflight()
                self._controller.on_exit(_exited_message("brain", found))
            elif self._preflight is not None and found.si_pid == self._preflight.pid:
                self._on_preflight_exit(self._preflight, _exited_message("rehearsal", found))
            elif token is not None:
                self._children.record_exit(_exited_message(token, found))
            os.waitpid(found.si_pid, 0)
            failpoint("keeper.reaped")

    # What the brain is told.

    def on_controller_start(self) -> None:
        """Tell a new brain everything there is."""
        self._controller.send(self._inventory(self._checkpoint))
        self._children.announce_all()

    def _send(self, message: object, descriptors: Sequence[int]) -> None:
        self._controller.send(message, descriptors)

    def _inventory(self, remembered: str) -> KeeperInventory:
        return KeeperInventory(
            keeper_pid=os.getpid(),
            generation=self._controller.generation,
            settings=self._program.settings,
            checkpoint=remembered,
            children=len(self._children),
            addresses=self._listeners.addresses,
            stopping=self._stop_by_s < float("inf"),
            keeper_generation=self._generation,
        )

    # What the brain asks for.

    def on_message(self, message: Any) -> None:  # one of TO_KEEPER
        """Do what the brain asks."""
        if self._exit_code is not None:
            return  # it is over
        match message:
            case Spawn():
                self._children.spawn(message)
            case SignalChild():
                self._children.signal(message)
            case ForgetChild(token):
                self._children.forget(token)
            case SaveCheckpoint(text):
                self._store_checkpoint(text)
            case NotifySystemd(text):
                self._notifier.send(text)
            case ShutdownFinished(code):
                self._finish(code)
            case RequestUpgrade(force):
                self._start_preflight(force=force)
            case _:
                assert isinstance(message, Heartbeat), f"{message} is not for a keeper"

    def _shared_descriptors(self, spawn: Spawn) -> dict[str, int]:
        unknown = [name for name in spawn.listeners if name not in self._listeners.addresses]
        if unknown:
            raise OSError(f"there is no listener {unknown[0]!r}")
        shared = {f"listen:{name}": self._listeners.fileno(name) for name in spawn.listeners}
        if spawn.counter_tables:
            shared |= {f"tally:{place}": fd for place, fd in enumerate(self._counter_tables)} | inherited_descriptors()
        return shared

    def _store_checkpoint(self, text: str) -> None:
        if len(to_json(self._inventory(text))) > MESSAGE_LIMIT - 1024:  # room for larger numbers
            self._console.log("error", "not_remembered", text=f"{len(text)} characters are too many")
        else:
            self._checkpoint = text
            failpoint("keeper.remembered")

    # What follows.

    def _start_preflight(self, *, force: bool) -> None:
        try:
            if self._preflight is not None or self._stop_by_s < float("inf"):
                raise OSError("an upgrade is under way, or the server ends")
            self._preflight = Preflight(self._state(), force=force, now_s=time.monotonic())
        except OSError as error:
            self._controller.send(UpgradeRefused(error.strerror or str(error)))

    def _on_preflight_exit(self, rehearsal: Preflight, ended: ChildExited) -> None:
        self._preflight = None
        outcome = rehearsal.result(ended)
        failpoint("keeper.trial_ended")
        if outcome.error:
            self._controller.send(UpgradeRefused(outcome.error))
            return
        self._is_reexec_due = rehearsal.force or outcome.build_id != self._program.build_id
        self._controller.replace(StepDown(self._is_reexec_due))
        failpoint("keeper.relieved")

    def _cancel_preflight(self) -> None:
        """Who asked for it is dead; the next brain asks again if it wants to."""
        if self._preflight is not None:
            self._preflight.close()
            self._preflight = None

    def _reexec(self) -> None:
        """Become the program on disk. Signals that come meanwhile wait for it."""
        self._is_reexec_due = False
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self._handle_signals()
            failpoint("keeper.blocked")
            if self._exit_code is None and self._stop_by_s == float("inf"):
                reexec.exec_next(self._state())
        except OSError as error:
            self._console.log("error", "keeper_not_renewed", text=error.strerror or str(error))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _state(self) -> KeeperState:
        charges, graves = self._children.records()
        return KeeperState(
            keeper_generation=self._generation,
            settings=self._program.settings,
            controller_generation=self._controller.generation,
            checkpoint=self._checkpoint,
            locks=self._resources.directories.locks,
            listeners=self._listeners.descriptors,
            addresses=self._listeners.addresses,
            socket_paths=tuple(self._listeners.socket_paths),
            lifeline=self._lifeline,
            lifeline_writer=self._lifeline_writer,
            counter_tables=tuple(self._counter_tables),
            notify_address=self._notifier.address,
            watchdog_s=self._notifier.watchdog_s,
            children=charges,
            dying_groups=graves,
        )

    # The end.

    def _kill_all(self, code: int) -> int:
        """Kill whatever is left and wait until it is gone, but not for ever."""
        began_s = time.monotonic()
        while not self._is_over() and time.monotonic() < began_s + KILL_LIMIT_S:
            self._children.kill_all()
            if time.monotonic() >= began_s + CONTROLLER_EXIT_LIMIT_S:
                self._controller.kill()
            self._children.kill_dying_groups()
            self._wait(time.monotonic() + CLEANUP_INTERVAL_S)
        # Whoever is our child now is an orphan that had left its session.
        while not process_tree.end_children(os.getpid()) and time.monotonic() < began_s + KILL_LIMIT_S:
            self._wait(time.monotonic() + CLEANUP_INTERVAL_S)
        self._console.log("info", "stopped", code=code)
        failpoint("keeper.ended")
        return code

    def _is_over(self) -> bool:
        return not self._controller.pid and self._children.is_empty


def _next_exited() -> os.waitid_result | None:
    """A child that has died, left unreaped."""
    try:
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None


def _exited_message(token: str, found: os.waitid_result) -> ChildExited:
    if found.si_code == os.CLD_EXITED:
        return ChildExited(token, found.si_pid, found.si_status, 0)
    return ChildExited(token, found.si_pid, 0, found.si_status)
