"""One brain as its keeper sees it: a process that must beat, and a channel.

A brain that says nothing for BEAT_LIMIT_S is dead whatever the kernel says. Nothing waits for a brain: what it cannot
hear yet is queued, and a brain that lets the queue run over does not beat either.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Final

from mmsup.ipc.failpoints import faultpoint
from mmsup.ipc.memory.status_page import make_page
from mmsup.ipc.messages.keeper_control import TO_KEEPER, Beat, Spawn
from mmsup.ipc.transport.control_channel import Closed, Seqpacket, close_all
from mmsup.ipc.transport.dataclass_codec import WireError, from_json, to_json
from mmsup.supervisor.keeper.spawn import Started, start, verdict

BEAT_LIMIT_S: Final = 5.0
FIRST_BEAT_S: Final = 15.0
"""Until its first beat a brain imports and reads; on a cold, busy disk that takes a while."""
QUEUE_LIMIT: Final = 4096
TURN: Final = 64
"""Messages taken in one turn of the keeper's loop, so that signals and timers have theirs."""


class Hotline:
    """One brain, from its fork to `close`, after it was reaped."""

    def __init__(self, spawn: Spawn, inherited: Mapping[str, int], now_s: float) -> None:
        """Start it; OSError if there can be no process now."""
        with contextlib.ExitStack() as failed, contextlib.ExitStack() as theirs:
            faultpoint("keeper.brain_channel")
            self._near, far = Seqpacket.pair()
            failed.callback(self._near.close)
            theirs.callback(far.close)
            page = make_page()
            theirs.callback(os.close, page)
            self._process: Started = start(spawn, {"control": far.fileno(), "page": page, **inherited}, None)
            failed.pop_all()
        self.started_s = now_s
        self.silent_at_s = now_s + FIRST_BEAT_S
        """When it will have said nothing for too long."""
        self._queue: deque[tuple[bytes, Sequence[int]]] = deque()
        self._fault = ""
        self._condemned = False

    @property
    def pid(self) -> int:
        """Its process, ours to reap."""
        return self._process.pid

    @property
    def pending(self) -> bool:
        """There is something that it has yet to hear."""
        return bool(self._queue)

    def fileno(self) -> int:
        """Its channel, for the selector."""
        return self._near.fileno()

    def tell(self, message: object, descriptors: Sequence[int] = ()) -> None:
        """Send now or as soon as there is room, in order. The descriptors stay the caller's and must stay open."""
        self._queue.append((to_json(message), descriptors))
        if len(self._queue) > QUEUE_LIMIT:
            self._fault = "does not read"
        self.flush()

    def flush(self) -> None:
        """Send what there is room for."""
        try:
            while self._queue and self._near.send(*self._queue[0]):
                self._queue.popleft()
        except Closed:
            self._queue.clear()

    def hear(self, now_s: float, turn: int = TURN) -> list[Any]:  # messages of TO_KEEPER; callers match on them
        """What it has said, about `turn` messages of it."""
        heard: list[Any] = []  # as above
        while len(heard) < turn and not self._fault:
            try:
                got = self._near.receive()
                if got is None:
                    break
                close_all(got[1])
                heard.append(from_json(got[0], TO_KEEPER))
            except Closed:
                self._fault = "hung up"
            except OSError as error:
                self._fault = f"cannot be heard: {error.strerror}"
            except WireError as error:
                self._fault = f"speaks another language: {error}"
        if any(isinstance(each, Beat) for each in heard):
            self.silent_at_s = now_s + BEAT_LIMIT_S
        return heard

    def trouble(self, now_s: float) -> str:
        """Why it should be killed now; empty if it should not, or already was."""
        if self._condemned:
            return ""
        return self._fault or ("missed its beats" if now_s >= self.silent_at_s else "")

    def kill(self) -> None:
        """End it, whatever it does; its death comes as any other."""
        self._condemned = True
        self.silent_at_s = float("inf")
        signal.pidfd_send_signal(self._process.pidfd, signal.SIGKILL)

    def close(self) -> str:
        """After its death: let go of it. Why its program did not run, if that was it."""
        text = verdict(self._process.doubt) or ""
        close_all([self._process.doubt, self._process.pidfd])
        self._near.close()
        return text
