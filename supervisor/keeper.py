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
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Final

from mmsup.ipc import exits
from mmsup.ipc.faultpoint import faultpoint, handed_on
from mmsup.ipc.messages import (
    Beat,
    Exited,
    Finished,
    Forget,
    Inventory,
    Notify,
    Reload,
    Remember,
    Signal,
    Spawn,
    SpawnFailed,
    Terminate,
)
from mmsup.ipc.records import to_json
from mmsup.ipc.seqpacket import MESSAGE_LIMIT
from mmsup.ipc.tally import make_tally
from mmsup.supervisor import group, kin
from mmsup.supervisor.charge import Charge, take
from mmsup.supervisor.console import Console
from mmsup.supervisor.listeners import CONTROL, Listeners
from mmsup.supervisor.notify import Notifier
from mmsup.supervisor.settings import Settings
from mmsup.supervisor.spawn import verdict
from mmsup.supervisor.succession import Succession

STOP_MARGIN_S: Final = 10.0
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
class _Grave:
    """The control group of a dead child, while something may still live in it."""

    folders: list[Path]
    until_s: float


class Keeper:
    """The loop, and what it holds."""

    def __init__(
        self, text: str, brain: Sequence[str], listeners: Listeners, notifier: Notifier, console: Console
    ) -> None:
        """`text`: the settings as they came; `brain`: the command that becomes one."""
        self._text = text
        self._settings = Settings.from_json(text)
        self._listeners = listeners
        self._notifier = notifier
        self._console = console
        self._selector = selectors.DefaultSelector()
        self._lifeline, self._life = os.pipe2(os.O_CLOEXEC)
        # Invariant: nobody but this process holds `_life`, so that its death ends every reader's wait.
        self._tallies = [make_tally() for _ in range(self._settings.gateways)]
        self._charges: dict[str, Charge] = {}
        self._graves: list[_Grave] = []
        self._remembered = ""
        self._signals: list[int] = []
        self._stop_by_s = float("inf")
        self._watchdog_s = float("inf")
        self._code: int | None = None
        inherited = {"lifeline": self._lifeline, "listen:control": listeners.fileno(CONTROL), **handed_on()}
        self._brains = Succession(brain, inherited, self._selector, console, self)

    def run(self) -> int:
        """Keep until somebody says the end; the exit code. Nothing that was started is left then."""
        self._catch_signals()
        if self._notifier.watchdog_s:
            self._watchdog_s = 0.0
        while self._code is None:
            self._tend(time.monotonic())
            self._brains.tend(time.monotonic())
            self._wait(min(self._stop_by_s, self._watchdog_s, self._brains.due_s))
        return self._end(self._code)

    def _tend(self, now_s: float) -> None:
        if now_s >= self._watchdog_s:
            self._notifier.send("WATCHDOG=1")
            self._watchdog_s = now_s + self._notifier.watchdog_s
        if now_s >= self._stop_by_s:
            self._console.say("error", "stop_timeout", text="the drain did not end in time")
            self._finish(exits.REFUSED)
        self._tend_graves()

    def _tend_graves(self) -> None:
        now_s = time.monotonic()
        self._graves = [grave for grave in self._graves if now_s < grave.until_s and not group.kill(grave.folders)]

    def _wait(self, until_s: float) -> None:
        wait_s = min(until_s - time.monotonic(), GRAVE_S if self._graves else IDLE_S)
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
            self._finish(exits.REFUSED)
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
            charge = self._charge_of(found.si_pid)
            if found.si_pid == self._brains.pid:
                self._brains.died(_exited("brain", found))
            elif charge is not None:
                self._bury(charge, _exited(charge.message.token, found))
            os.waitpid(found.si_pid, 0)
            faultpoint("keeper.reaped")

    def _charge_of(self, pid: int) -> Charge | None:
        for charge in self._charges.values():
            if charge.message.pid == pid and charge.ended is None:
                return charge
        return None

    def _bury(self, charge: Charge, ended: Exited) -> None:
        self._settle(charge)
        charge.ended = ended
        if charge.message.token in self._charges:
            self._brains.tell(ended)
        faultpoint("keeper.exit_told")
        kin.end_session(ended.pid)
        if charge.procs_files:
            folders = [Path(each).parent for each in charge.procs_files]
            if not group.kill(folders):
                self._graves.append(_Grave(folders, time.monotonic() + END_S))

    # What the brain is told.

    def greet(self) -> None:
        """Tell a new brain everything there is."""
        self._brains.tell(self._inventory(self._remembered))
        for charge in self._charges.values():
            self._introduce(charge)
            if charge.ended is not None:
                self._brains.tell(charge.ended)

    def _inventory(self, remembered: str) -> Inventory:
        return Inventory(
            keeper_pid=os.getpid(),
            generation=self._brains.generation,
            settings=self._text,
            remembered=remembered,
            children=len(self._charges),
            addresses=self._listeners.addresses,
            stopping=self._stop_by_s < float("inf"),
        )

    def _introduce(self, charge: Charge) -> None:
        charge.told = True
        self._brains.tell(charge.message, charge.descriptors)
        faultpoint("keeper.introduced")

    # What the brain asks for.

    def do(self, message: Any) -> None:  # one of TO_KEEPER
        """Do what the brain asks."""
        if self._code is not None:
            return  # it is over
        match message:
            case Spawn():
                self._spawn(message)
            case Signal():
                self._signal(message)
            case Forget(token):
                self._forget(token)
            case Remember(text):
                self._remember(text)
            case Notify(text):
                self._notifier.send(text)
            case Finished(code):
                self._finish(code)
            case _:
                assert isinstance(message, Beat), f"{message} is not for a keeper"

    def _spawn(self, spawn: Spawn) -> None:
        try:
            if spawn.token in self._charges:
                raise OSError(f"there is a {spawn.token} already")
            charge = take(spawn, self._lifeline, self._shared(spawn))
        except OSError as error:
            self._brains.tell(SpawnFailed(spawn.token, error.strerror or str(error)))
            return
        self._charges[spawn.token] = charge
        faultpoint("keeper.spawned")
        assert charge.doubt is not None, "a fresh child is in doubt"
        self._selector.register(charge.doubt, selectors.EVENT_READ, lambda: self._settle(charge))

    def _shared(self, spawn: Spawn) -> dict[str, int]:
        unknown = [name for name in spawn.listeners if name not in self._listeners.addresses]
        if unknown:
            raise OSError(f"there is no listener {unknown[0]!r}")
        shared = {f"listen:{name}": self._listeners.fileno(name) for name in spawn.listeners}
        if spawn.tallies:
            shared |= {f"tally:{place}": fd for place, fd in enumerate(self._tallies)} | handed_on()
        return shared

    def _settle(self, charge: Charge) -> None:
        """A child's program runs, or it never will."""
        if charge.doubt is None:
            return  # its death was heard in the same turn
        text = verdict(charge.doubt)
        if text is None:
            return
        self._selector.unregister(charge.doubt)
        charge.settle()
        if not text:
            if not charge.told:
                self._introduce(charge)
        elif not charge.told:  # else a new brain knows it as a child, and will know its end
            del self._charges[charge.message.token]
            charge.release()
            self._brains.tell(SpawnFailed(charge.message.token, text))

    def _signal(self, asked: Signal) -> None:
        charge = self._charges.get(asked.token)
        if charge is None or charge.ended is not None or asked.signal not in signal.valid_signals():
            return  # it died meanwhile, and its brain will know
        if asked.group:
            kin.signal_session(charge.message.pid, asked.signal)
        else:
            signal.pidfd_send_signal(charge.pidfd, asked.signal)
        faultpoint("keeper.signalled")

    def _forget(self, token: str) -> None:
        charge = self._charges.get(token)
        if charge is not None and charge.ended is not None:
            del self._charges[token]
            charge.release()
            faultpoint("keeper.forgotten")

    def _remember(self, text: str) -> None:
        if len(to_json(self._inventory(text))) > MESSAGE_LIMIT - 1024:  # room for larger numbers
            self._console.say("error", "not_remembered", text=f"{len(text)} characters are too many")
        else:
            self._remembered = text
            faultpoint("keeper.remembered")

    # The end.

    def _end(self, code: int) -> int:
        """Kill whatever is left and wait until it is gone, but not for ever."""
        began_s = time.monotonic()
        while not self._is_over() and time.monotonic() < began_s + END_S:
            for charge in self._charges.values():
                if charge.ended is None:
                    signal.pidfd_send_signal(charge.pidfd, signal.SIGKILL)
            if time.monotonic() >= began_s + GOODBYE_S:
                self._brains.kill()
            self._tend_graves()
            self._wait(time.monotonic() + GRAVE_S)
        # Whoever is our child now is an orphan that had left its session.
        while not kin.end_children(os.getpid()) and time.monotonic() < began_s + END_S:
            self._wait(time.monotonic() + GRAVE_S)
        self._console.say("info", "stopped", code=code)
        faultpoint("keeper.ended")
        return code

    def _is_over(self) -> bool:
        return not self._brains.pid and not self._graves and all(each.ended for each in self._charges.values())


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


if __name__ == "__main__":
    # Late, for boot.py needs the class above, and under its own name.
    from mmsup.supervisor.boot import main

    sys.exit(main(sys.argv[1:]))
