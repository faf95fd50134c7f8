"""One controller process as the keeper sees it: a pid, a control channel, and heartbeats that it must send.

A controller that sends no heartbeat for HEARTBEAT_TIMEOUT_S, waits for a processor aside, is killed. Sending to it
never blocks: messages that the channel has no room for are queued, and one that lets the queue overflow is killed too.
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
from mmsup.supervisor.linux.process_activity import queued_s

HEARTBEAT_TIMEOUT_S: Final = 5.0
FIRST_HEARTBEAT_TIMEOUT_S: Final = 15.0
"""Before its first heartbeat a controller imports and reads files, which takes long on a cold, busy disk."""
MOST_EXTENSION_S: Final = 15.0
"""By how much a controller that gets no processor may be later: time in which it waited for one is not held against it,
but a machine that is full must not hide one that hangs."""
QUEUE_LIMIT: Final = 4096
RECEIVE_LIMIT: Final = 64
"""Messages received in one iteration of the keeper's loop, so that signals and timers are not delayed."""


class ControllerProcess:
    """From its fork until `close`, which follows its reaping."""

    def __init__(self, spawn: Spawn, inherited: Mapping[str, int], now_s: float) -> None:
        """Start it; OSError if no process can be started now."""
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
        self._extended_s = 0.0
        self._queued_s = 0.0
        """Of its time in the run queue, what the present deadline knows of."""
        self._queue: deque[tuple[bytes, Sequence[int]]] = deque()
        self._failure = ""
        self._is_killed = False

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def has_pending(self) -> bool:
        """Messages wait for room in the channel."""
        return bool(self._queue)

    def fileno(self) -> int:
        return self._channel.fileno()

    def send(self, message: object, descriptors: Sequence[int] = ()) -> None:
        """Send now, or in order as soon as there is room. The caller keeps the descriptors open."""
        self._queue.append((to_json(message), descriptors))
        if len(self._queue) > QUEUE_LIMIT:
            self._failure = "does not read"
        self.flush()

    def flush(self) -> None:
        try:
            while self._queue and self._channel.send(*self._queue[0]):
                self._queue.popleft()
        except ChannelClosed:
            self._queue.clear()

    def receive(self, now_s: float, limit: int = RECEIVE_LIMIT) -> list[Any]:  # messages of TO_KEEPER
        """The messages that have arrived, at most `limit`."""
        received: list[Any] = []  # as above
        while len(received) < limit and not self._failure:
            try:
                packet = self._channel.receive()
                if packet is None:
                    break
                close_fds(packet[1])
                received.append(from_json(packet[0], TO_KEEPER))
            except ChannelClosed:
                self._failure = "closed its channel"
            except OSError as error:
                self._failure = f"cannot be received from: {error.strerror}"
            except WireError as error:
                self._failure = f"sent an invalid message: {error}"
        if any(isinstance(each, Heartbeat) for each in received):
            self.heartbeat_due_s, self._extended_s = now_s + HEARTBEAT_TIMEOUT_S, 0.0
            self._queued_s = queued_s(self.pid)
        return received

    def kill_reason(self, now_s: float) -> str:
        """Why it must be killed now; empty if it must not, or was killed already."""
        if self._is_killed:
            return ""
        if not self._failure and now_s >= self.heartbeat_due_s:
            self._extend()
        return self._failure or ("missed its heartbeats" if now_s >= self.heartbeat_due_s else "")

    def _extend(self) -> None:
        """Put its deadline off by the time in which it waited for a processor."""
        waited_s, self._queued_s = queued_s(self.pid) - self._queued_s, queued_s(self.pid)
        more_s = min(max(waited_s, 0.0), MOST_EXTENSION_S - self._extended_s)
        self._extended_s += more_s
        self.heartbeat_due_s += more_s

    def kill(self) -> None:
        self._is_killed = True
        self.heartbeat_due_s = float("inf")
        signal.pidfd_send_signal(self._process.pidfd, signal.SIGKILL)

    def close(self) -> str:
        """Close its descriptors, after its exit. Returns why its program could not be run; empty if it ran."""
        text = exec_error(self._process.exec_status) or ""
        close_fds([self._process.exec_status, self._process.pidfd])
        self._channel.close()
        return text
