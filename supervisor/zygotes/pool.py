"""The zygotes of a server: which there should be, which there are, and which one forks the next worker.

A worker of a new instance waits for a zygote that imports: to import the same itself takes as long. One that is started
again does not wait; if no zygote is ready, it is started by exec. A zygote that ends touches no worker; it is started
again after the pauses of zygote_history.py, at once if it ended because its code has changed. One that fewer than two
workers want is ended after a while, but not before the last worker that was forked of its kind: the pages that they
share would stay, and nobody would count them. Their number is bounded, and each has a control group with a memory
limit.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Callable, Iterable
from typing import Final

from mmsup.ipc import exit_codes
from mmsup.ipc.messages.keeper_control import ChildExited, ForgetChild, SignalChild
from mmsup.ipc.specs import ModelSpec
from mmsup.ipc.transport.control_channel import close_fds
from mmsup.supervisor.processes.launch_spec import StartMethod, zygote_token
from mmsup.supervisor.zygotes.launcher import PoolContext, ZygoteLauncher
from mmsup.supervisor.zygotes.start_method import KnownImports, ZygoteKey, exec_reason, wanted_zygotes
from mmsup.supervisor.zygotes.zygote_history import HEALTHY_S, ZygoteHistory
from mmsup.supervisor.zygotes.zygote_process import Zygote, exit_text

MOST_ZYGOTES: Final = 8
"""At one time. One with torch takes about 210 MB."""
UNUSED_S: Final = 60.0
"""How long one lives that no more than one worker wants."""
ROOM_S: Final = 1.0
"""Until it is looked whether there is room for one that the memory budget had none for."""
NO_ROOM: Final = "the memory budget has no room for it"
LOOK_S: Final = 0.1
"""Until it is looked after workers have come or gone. One that starts looks by itself whether there is its zygote."""


class ZygotePool:
    def __init__(
        self,
        context: PoolContext,
        specs: Callable[[], Iterable[ModelSpec]],
        forked: Callable[[], Iterable[ModelSpec]],
    ) -> None:
        """`specs`: one for each worker that is there, or waits for its load; `forked`: for each that is there and was
        forked."""
        self._context = context
        self._specs = specs
        self._forked = forked
        self._launcher = ZygoteLauncher(context)
        self._imports = KnownImports(sys.executable)
        self._zygotes: dict[ZygoteKey, Zygote] = {}
        self._ending: list[Zygote] = []
        self._history: dict[ZygoteKey, ZygoteHistory] = {}
        self.make_room: Callable[[str], bool] = lambda _: True
        """Whether the memory budget has room for one with this engine set, once models were put to sleep
        for it; asks about all loads."""
        self._is_open = self._is_look_due = False
        self._timers: set[asyncio.TimerHandle] = set()

    def open(self) -> None:
        """All children of the controller before are known; start what is missing."""
        self._is_open = True
        self.update()

    def choose(self, spec: ModelSpec, *, may_wait: bool) -> StartMethod:
        """How the worker of this model that is about to start is started. `may_wait`: for a zygote that imports; its
        callers do not wait for it."""
        if self._context.mode == "none":
            return StartMethod("", "the server's option zygotes is none")
        if reason := exec_reason(spec):
            return StartMethod("", reason)
        key = self._imports.key(spec)
        if key not in self._zygotes:
            self.update()
        zygote = self._zygotes.get(key)
        if zygote is not None and zygote.is_ready:
            return StartMethod(zygote.token, f"of zygote {zygote.number}, which has imported {key.engine_set}")
        if zygote is not None and may_wait:
            return StartMethod(zygote.token, f"of zygote {zygote.number}, which imports {key.engine_set}", waits=True)
        if zygote is not None:
            return StartMethod("", f"the zygote for {key.engine_set} is not ready yet, and callers may wait")
        history = self._history.get(key)
        lost = f"there is no zygote for {key.engine_set}: {history.reason}" if history and history.reason else ""
        return StartMethod("", lost or f"a zygote for {key.engine_set} is kept from the second worker on")

    def learn(self, spec: ModelSpec, imported: Iterable[str], *, is_forked: bool) -> None:
        """A worker is ready, and its interpreter has imported these."""
        history = self._history.get(self._imports.key(spec)) if is_forked else None
        if history is not None:
            history.refused.clear()
        self._imports.learn(spec, imported)

    def refused(self, spec: ModelSpec) -> None:
        """A worker of this model was not forked when that was asked."""
        key = self._imports.key(spec)
        history = self._history.setdefault(key, ZygoteHistory())
        zygote = self._zygotes.get(key)
        history.record_refusal(zygote.number if zygote is not None else history.last, time.monotonic())

    def update(self) -> None:
        """Start the zygotes that are wanted, and end those that have not been for a while."""
        self._is_look_due = False
        if not self._is_open:
            return
        now_s = time.monotonic()
        keys = (self._imports.key(each) for each in self._specs() if not exec_reason(each))
        wanted = wanted_zygotes(keys, self._context.mode, sys.executable)
        for key in sorted(wanted - self._zygotes.keys(), key=lambda each: (each.interpreter, each.engine_set)):
            history = self._history.setdefault(key, ZygoteHistory())
            is_full = len(self._zygotes) + len(self._ending) >= MOST_ZYGOTES
            if is_full or now_s < history.retry_at_s or key in self._zygotes:
                continue
            before, history.reason = history.reason, NO_ROOM
            history.retry_at_s = now_s + ROOM_S  # while it asks: what is booked depends on how loads are to be started
            if not self.make_room(key.engine_set):
                continue
            history.reason, history.retry_at_s = before, now_s
            try:
                self._zygotes[key] = self._launcher.start(key)
            except OSError as error:
                history.reason, history.retry_at_s = error.strerror or str(error), now_s + HEALTHY_S
        used = wanted | {self._imports.key(each) for each in self._forked()}
        for zygote in list(self._zygotes.values()):
            if zygote.key in used:
                zygote.unused_since_s = None
            elif zygote.unused_since_s is None:
                zygote.unused_since_s = now_s
                self.update_later(UNUSED_S)
            elif now_s >= zygote.unused_since_s + UNUSED_S:
                self._end(zygote, "fewer than two workers want it")
        for key in self._history.keys() - wanted - self._zygotes.keys():
            if self._history[key].is_over(now_s):
                del self._history[key]

    def renew(self) -> None:
        """The code of the server was changed: end those of the controllers before. Those that are wanted follow."""
        for zygote in list(self._zygotes.values()):
            if zygote.generation != self._context.generation:
                self._end(zygote, "the server was upgraded")
        self.update()

    def rows(self) -> list[Zygote]:
        """Those that have a process."""
        return [each for each in (*self._zygotes.values(), *self._ending) if each.process is not None]

    def on_started(self, number: int, generation: int, pid: int, note: str, descriptors: list[int]) -> None:
        """The keeper has started one, or hands it over to a new controller."""
        zygote = _find((*self._zygotes.values(), *self._ending), number, generation)
        if zygote is None:
            restored = self._launcher.restore(number, generation, note)
            if restored.key not in self._zygotes:
                zygote = self._zygotes[restored.key] = restored
        if zygote is None or not descriptors:
            close_fds(descriptors)
            token = zygote_token(number, generation)
            self._context.send(SignalChild(token, signal.SIGKILL, whole_session=True))
        else:
            zygote.adopt(pid, descriptors)

    def on_start_failed(self, number: int, generation: int, text: str) -> None:
        zygote = _find((*self._zygotes.values(), *self._ending), number, generation)
        if zygote is not None:
            self._on_gone(zygote, f"it could not be started: {text}", is_outdated=False)

    def on_exited(self, number: int, generation: int, message: ChildExited) -> None:
        zygote = _find((*self._zygotes.values(), *self._ending), number, generation)
        if zygote is not None:
            is_outdated = not message.signal and message.status == exit_codes.ZYGOTE_OUTDATED
            self._on_gone(zygote, exit_text(message, zygote.group.read()), is_outdated=is_outdated)
        self._context.send(ForgetChild(message.token))

    def close(self) -> None:
        """The processes go on without this one."""
        self._is_open = False
        for timer in self._timers:
            timer.cancel()
        for each in (*self._zygotes.values(), *self._ending):
            each.close()

    def _on_gone(self, zygote: Zygote, text: str, *, is_outdated: bool) -> None:
        now_s, key = time.monotonic(), zygote.key
        self._launcher.clean_up(zygote)
        if zygote.is_ending:
            self._ending.remove(zygote)
            self.update_later(0.0)
            return
        del self._zygotes[key]
        served_s = now_s - zygote.ready_s if zygote.ready_s else 0.0
        history = self._history.setdefault(key, ZygoteHistory())
        pause_s = history.record_exit(zygote.number, text, served_s, now_s, is_outdated=is_outdated)
        what = f"the zygote for {key.engine_set} ended: {history.reason}; its workers go on"
        self._context.event_log.record("zygote_exit", what, zygote=zygote.number, next_delay_s=round(pause_s, 3))
        self.update_later(pause_s)

    def _end(self, zygote: Zygote, reason: str) -> None:
        del self._zygotes[zygote.key]
        self._ending.append(zygote)
        zygote.is_ending = True
        text = f"the zygote for {zygote.key.engine_set} ends: {reason}"
        self._context.event_log.record("zygote_end", text, zygote=zygote.number)
        self._launcher.kill(zygote)

    def update_later(self, after_s: float = LOOK_S) -> None:
        """Without a time: soon, once however many workers come and go meanwhile."""
        is_look = after_s == LOOK_S
        if is_look and self._is_look_due:
            return
        self._is_look_due |= is_look

        def look() -> None:
            self._timers.discard(timer)
            self.update()

        timer = asyncio.get_running_loop().call_later(after_s, look)
        self._timers.add(timer)


def _find(zygotes: Iterable[Zygote], number: int, generation: int) -> Zygote | None:
    return next((each for each in zygotes if (each.number, each.generation) == (number, generation)), None)
