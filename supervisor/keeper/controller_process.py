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

from mmsup.ipc.failpoints import failpoint
from mmsup.ipc.memory.status_page import make_status_page
from mmsup.ipc.messages.keeper_control import TO_KEEPER, Heartbeat, Spawn
from mmsup.ipc.transport.control_channel import ChannelClosed, ControlChannel, close_fds
from mmsup.ipc.transport.dataclass_codec import WireError, from_json, to_json
from mmsup.supervisor.keeper.spawn import StartedProcess, exec_error, start

HEARTBEAT_TIMEOUT_S: Final = 5.0
FIRST_HEARTBEAT_TIMEOUT_S: Final = 15.0
"""Until its first beat a brain imports and reads; on a cold, busy disk that takes a while."""
QUEUE_LIMIT: Final = 4096
RECEIVE_LIMIT: Final = 64
"""Messages taken in one turn of the keeper's loop, so that signals and timers have theirs."""


class ControllerProcess:
    """One brain, from its fork to `close`, after it was reaped."""

    def __init__(self, spawn: Spawn, inherited: Mapping[str, int], now_s: float) -> None:
        """Start it; OSError if there can be no process now."""
        with contextlib.ExitStack() as failed, contextlib.ExitStack() as theirs:
            failpoint("keeper.brain_channel")
            self._channel, far = ControlChannel.pair()
            failed.callback(self._channel.close)
            theirs.callback(far.close)
            page = make_status_page()
            theirs.callback(os.close, page)
            self._process: StartedProcess = start(spawn, {"control": far.fileno(), "page": page, **inherited}, None)
            failed.pop_all()
        self.started_s = now_s
        self.heartbeat_due_s = now_s + FIRST_HEARTBEAT_TIMEOUT_S
        """When it will have said nothing for too long."""
        self._queue: deque[tuple[bytes, Sequence[int]]] = deque()
        self._failure = ""
        self._is_killed = False

    @property
    def pid(self) -> int:
        """Its process, ours to reap."""
        return self._process.pid

    @property
    def has_pending(self) -> bool:
        """There is something that it has yet to hear."""
        return bool(self._queue)

    def fileno(self) -> int:
        """Its channel, for the selector."""
        return self._channel.fileno()

    def send(self, message: object, descriptors: Sequence[int] = ()) -> None:
        """Send now or as soon as there is room, in order. The descriptors stay the caller's and must stay open."""
        self._queue.append((to_json(message), descriptors))
        if len(self._queue) > QUEUE_LIMIT:
            self._failure = "does not read"
        self.flush()

    def flush(self) -> None:
        """Send what there is room for."""
        try:
            while self._queue and self._channel.send(*self._queue[0]):
                self._queue.popleft()
        except ChannelClosed:
            self._queue.clear()

    def receive(
        self, now_s: float, turn: int = RECEIVE_LIMIT
    ) -> list[Any]:  # messages of TO_KEEPER; callers match on them
        """What it has said, about `turn` messages of it."""
        heard: list[Any] = []  # as above
        while len(heard) < turn and not self._failure:
            try:
                got = self._channel.receive()
                if got is None:
                    break
                close_fds(got[1])
                heard.append(from_json(got[0], TO_KEEPER))
            except ChannelClosed:
                self._failure = "hung up"
            except OSError as error:
                self._failure = f"cannot be heard: {error.strerror}"
            except WireError as error:
                self._failure = f"speaks another language: {error}"
        if any(isinstance(each, Heartbeat) for each in heard):
            self.heartbeat_due_s = now_s + HEARTBEAT_TIMEOUT_S
        return heard

    def kill_reason(self, now_s: float) -> str:
        """Why it should be killed now; empty if it should not, or already was."""
        if self._is_killed:
            return ""
        return self._failure or ("missed its beats" if now_s >= self.heartbeat_due_s else "")

    def kill(self) -> None:
        """End it, whatever it does; its death comes as any other."""
        self._is_killed = True
        self.heartbeat_due_s = float("inf")
        signal.pidfd_send_signal(self._process.pidfd, signal.SIGKILL)

    def close(self) -> str:
        """After its death: let go of it. Why its program did not run, if that was it."""
        text = exec_error(self._process.exec_status) or ""
        close_fds([self._process.exec_status, self._process.pidfd])
        self._channel.close()
        return text
