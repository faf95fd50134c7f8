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
from mmsup.ipc.failpoints import faultpoint, handed_on
from mmsup.ipc.memory.counters import make_tally
from mmsup.ipc.messages.keeper_control import (
    Beat,
    Exited,
    Finished,
    Forget,
    Inventory,
    Notify,
    NotUpgraded,
    Reload,
    Remember,
    Signal,
    Spawn,
    StepDown,
    Terminate,
    Upgrade,
)
from mmsup.ipc.transport.control_channel import MESSAGE_LIMIT
from mmsup.ipc.transport.dataclass_codec import to_json
from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.keeper import reexec
from mmsup.supervisor.keeper.bootstrap_premises import Premises
from mmsup.supervisor.keeper.children import Nursery
from mmsup.supervisor.keeper.controller_restart import Succession
from mmsup.supervisor.keeper.listeners import CONTROL
from mmsup.supervisor.keeper.preflight import Rehearsal
from mmsup.supervisor.keeper.reexec import Estate
from mmsup.supervisor.linux import process_tree

STOP_MARGIN_S: Final = 15.0
"""Beyond the drain that the settings allow: a brain that has not finished then never will."""
GRAVE_S: Final = 0.02
"""How often a dead child's control group is looked at until nobody is left in it."""
IDLE_S: Final = 60.0
"""A turn of the loop with nothing to do; for ever is not a time that a selector knows."""
END_S: Final = 5.0
"""What the last killing may take; a process in an unkillable state is not waited for longer."""
GOODBYE_S: Final = 1.0
"""How long a brain that has finished may take to leave."""


@dataclass(frozen=True, slots=True)
class Program:
    """What the keeper runs. `settings`: as they came; `brain`: the command that becomes one; `code`: its own digest."""

    settings: str
    brain: tuple[str, ...]
    code: str


class Keeper:
    """The loop, and what it holds."""

    def __init__(self, program: Program, premises: Premises, estate: Estate | None = None) -> None:
        """`estate`: what the program left that was the keeper before, in this process."""
        self._program = program
        self._settings = Settings.from_json(program.settings)
        self._premises = premises
        self._listeners = premises.listeners
        self._notifier = premises.notifier
        self._console = premises.console
        self._selector = selectors.DefaultSelector()
        # Invariant: nobody but this process holds `_life_end`, so that its death ends every reader's wait.
        self._lifeline, self._life_end = (estate.lifeline, estate.life_end) if estate else os.pipe2(os.O_CLOEXEC)
        self._tallies = list(estate.tallies) if estate else []
        self._tallies += [make_tally() for _ in range(self._settings.gateway_numbers - len(self._tallies))]
        self._life = estate.life + 1 if estate else 1
        self._children = Nursery(self._selector, self._lifeline, self._shared, self._tell)
        self._remembered = estate.remembered if estate else ""
        self._rehearsal: Rehearsal | None = None
        self._renews = False
        """This program is to be followed by the one on disk, once no brain is there."""
        self._signals: list[int] = []
        self._stop_by_s = float("inf")
        self._watchdog_s = float("inf")
        self._code: int | None = None
        control = self._listeners.fileno(CONTROL)
        inherited = {"lifeline": self._lifeline, "listen:control": control, **handed_on()}
        brains = estate.brains if estate else 0
        self._brains = Succession(program.brain, inherited, self._selector, self._console, self, brains)
        if estate is not None:
            self._children.take_over(estate.charges, estate.graves)
            faultpoint("keeper.taken_over")

    def run(self) -> int:
        """Keep until somebody says the end; the exit code. Nothing that was started is left then."""
        self._catch_signals()
        if self._notifier.watchdog_s:
            self._watchdog_s = 0.0
        while self._code is None:
            self._tend(time.monotonic())
            if self._renews and not self._brains.pid:
                self._renew()
            self._brains.tend(time.monotonic())
            rehearsed_by_s = self._rehearsal.until_s if self._rehearsal else float("inf")
            self._wait(min(self._stop_by_s, self._watchdog_s, self._brains.due_s, rehearsed_by_s))
        return self._end(self._code)

    def _tend(self, now_s: float) -> None:
        if now_s >= self._watchdog_s:
            self._notifier.send("WATCHDOG=1")
            self._watchdog_s = now_s + self._notifier.watchdog_s
        if now_s >= self._stop_by_s:
            self._console.say("error", "stop_timeout", text="the drain did not end in time")
            self._finish(exit_codes.REFUSED)
        if self._rehearsal is not None and now_s >= self._rehearsal.until_s:
            self._rehearsal.kill()
        self._children.tend_graves()

    def _wait(self, until_s: float) -> None:
        wait_s = min(until_s - time.monotonic(), GRAVE_S if self._children.has_graves else IDLE_S)
        for key, _ in self._selector.select(max(0.0, wait_s)):
            key.data()
        self._take_signals()

    # What comes from outside.

    def _catch_signals(self) -> None:
        """From now on a signal is noted by its handler, and ends the wait by a byte at the wakeup socket."""
        wakeup, write = socket.socketpair()
        for end in (wakeup, write):
            end.setblocking(False)  # noqa: FBT003 - the standard library's own signature
        # The bytes say no more than that: when the socket is full, as after many deaths at once, others are lost.
        signal.set_wakeup_fd(write.detach(), warn_on_full_buffer=False)
        self._selector.register(wakeup, selectors.EVENT_READ, lambda: wakeup.recv(4096))
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, self._note_signal)
        # The program before this one has blocked all: none was lost, and who died meanwhile is there to be reaped.
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        self._signals.append(signal.SIGCHLD)

    def _note_signal(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signature of handlers
        self._signals.append(number)

    def _take_signals(self) -> None:
        while self._signals:
            match self._signals.pop(0):
                case signal.SIGCHLD:
                    self._reap()
                case signal.SIGHUP:
                    self._brains.tell(Reload())
                case _:
                    self._stop()

    def _stop(self) -> None:
        if self._stop_by_s < float("inf"):
            self._console.say("warning", "stop_forced", text="told to stop twice")
            self._finish(exit_codes.REFUSED)
            self._brains.kill()
            return
        self._console.say("info", "stopping")
        self._notifier.send("STOPPING=1")
        self._stop_by_s = time.monotonic() + self._settings.exit_timeout_s + STOP_MARGIN_S
        self._brains.tell(Terminate())
        faultpoint("keeper.stopping")
        self._brains.hurry()

    def _finish(self, code: int) -> None:
        if self._code is None:
            self._code = code
            self._brains.retire()
            faultpoint("keeper.finished")

    def _reap(self) -> None:
        """Take in everybody who died. The number of the dead is not given away before its session has ended."""
        while (found := _next_dead()) is not None:
            token = self._children.token_of(found.si_pid)
            if found.si_pid == self._brains.pid:
                self._forsake_rehearsal()
                self._brains.died(_exited("brain", found))
            elif self._rehearsal is not None and found.si_pid == self._rehearsal.pid:
                self._rehearsed(self._rehearsal, _exited("rehearsal", found))
            elif token is not None:
                self._children.bury(_exited(token, found))
            os.waitpid(found.si_pid, 0)
            faultpoint("keeper.reaped")

    # What the brain is told.

    def greet(self) -> None:
        """Tell a new brain everything there is."""
        self._brains.tell(self._inventory(self._remembered))
        self._children.introduce()

    def _tell(self, message: object, descriptors: Sequence[int]) -> None:
        self._brains.tell(message, descriptors)

    def _inventory(self, remembered: str) -> Inventory:
        return Inventory(
            keeper_pid=os.getpid(),
            generation=self._brains.generation,
            settings=self._program.settings,
            remembered=remembered,
            children=len(self._children),
            addresses=self._listeners.addresses,
            stopping=self._stop_by_s < float("inf"),
            keeper_life=self._life,
        )

    # What the brain asks for.

    def do(self, message: Any) -> None:  # one of TO_KEEPER
        """Do what the brain asks."""
        if self._code is not None:
            return  # it is over
        match message:
            case Spawn():
                self._children.spawn(message)
            case Signal():
                self._children.signal(message)
            case Forget(token):
                self._children.forget(token)
            case Remember(text):
                self._remember(text)
            case Notify(text):
                self._notifier.send(text)
            case Finished(code):
                self._finish(code)
            case Upgrade(force):
                self._rehearse(force=force)
            case _:
                assert isinstance(message, Beat), f"{message} is not for a keeper"

    def _shared(self, spawn: Spawn) -> dict[str, int]:
        unknown = [name for name in spawn.listeners if name not in self._listeners.addresses]
        if unknown:
            raise OSError(f"there is no listener {unknown[0]!r}")
        shared = {f"listen:{name}": self._listeners.fileno(name) for name in spawn.listeners}
        if spawn.tallies:
            shared |= {f"tally:{place}": fd for place, fd in enumerate(self._tallies)} | handed_on()
        return shared

    def _remember(self, text: str) -> None:
        if len(to_json(self._inventory(text))) > MESSAGE_LIMIT - 1024:  # room for larger numbers
            self._console.say("error", "not_remembered", text=f"{len(text)} characters are too many")
        else:
            self._remembered = text
            faultpoint("keeper.remembered")

    # What follows.

    def _rehearse(self, *, force: bool) -> None:
        try:
            if self._rehearsal is not None or self._stop_by_s < float("inf"):
                raise OSError("an upgrade is under way, or the server ends")
            self._rehearsal = Rehearsal(self._estate(), force=force, now_s=time.monotonic())
        except OSError as error:
            self._brains.tell(NotUpgraded(error.strerror or str(error)))

    def _rehearsed(self, rehearsal: Rehearsal, ended: Exited) -> None:
        self._rehearsal = None
        outcome = rehearsal.outcome(ended)
        faultpoint("keeper.trial_ended")
        if outcome.fault:
            self._brains.tell(NotUpgraded(outcome.fault))
            return
        self._renews = rehearsal.force or outcome.code != self._program.code
        self._brains.relieve(StepDown(self._renews))
        faultpoint("keeper.relieved")

    def _forsake_rehearsal(self) -> None:
        """Who asked for it is dead; the next brain asks again if it wants to."""
        if self._rehearsal is not None:
            self._rehearsal.close()
            self._rehearsal = None

    def _renew(self) -> None:
        """Become the program on disk. Signals that come meanwhile wait for it."""
        self._renews = False
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self._take_signals()
            faultpoint("keeper.blocked")
            if self._code is None and self._stop_by_s == float("inf"):
                reexec.become_next(self._estate())
        except OSError as error:
            self._console.say("error", "keeper_not_renewed", text=error.strerror or str(error))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _estate(self) -> Estate:
        charges, graves = self._children.notes()
        return Estate(
            life=self._life,
            settings=self._program.settings,
            brains=self._brains.generation,
            remembered=self._remembered,
            locks=self._premises.home.locks,
            listeners=self._listeners.descriptors,
            addresses=self._listeners.addresses,
            socket_paths=tuple(self._listeners.files),
            lifeline=self._lifeline,
            life_end=self._life_end,
            tallies=tuple(self._tallies),
            notify_address=self._notifier.address,
            watchdog_s=self._notifier.watchdog_s,
            charges=charges,
            graves=graves,
        )

    # The end.

    def _end(self, code: int) -> int:
        """Kill whatever is left and wait until it is gone, but not for ever."""
        began_s = time.monotonic()
        while not self._is_over() and time.monotonic() < began_s + END_S:
            self._children.kill()
            if time.monotonic() >= began_s + GOODBYE_S:
                self._brains.kill()
            self._children.tend_graves()
            self._wait(time.monotonic() + GRAVE_S)
        # Whoever is our child now is an orphan that had left its session.
        while not process_tree.end_children(os.getpid()) and time.monotonic() < began_s + END_S:
            self._wait(time.monotonic() + GRAVE_S)
        self._console.say("info", "stopped", code=code)
        faultpoint("keeper.ended")
        return code

    def _is_over(self) -> bool:
        return not self._brains.pid and self._children.is_empty


def _next_dead() -> os.waitid_result | None:
    """A child that has died, left unreaped."""
    try:
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None


def _exited(token: str, found: os.waitid_result) -> Exited:
    if found.si_code == os.CLD_EXITED:
        return Exited(token, found.si_pid, found.si_status, 0)
    return Exited(token, found.si_pid, 0, found.si_status)
