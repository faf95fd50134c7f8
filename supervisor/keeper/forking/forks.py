"""Has zygotes fork workers: requests that are not answered yet, and what becomes of them. Nothing here waits.

A request ends in one of two ways. The worker exists, is set up, and is the keeper's child. Or the zygote has refused,
has exited, or has not answered in time, and then it is killed: NotForked goes to the controller, and the worker is
started by exec at once. A worker that was forked nevertheless finds its status channel closed, and exits before it has
run anything.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from mmsup.ipc.environment import WORKER_MARK
from mmsup.ipc.messages.keeper_control import NotForked, Spawn, SpawnFailed
from mmsup.ipc.messages.zygote_control import FORK_STATUS, GO, Forked, ForkRefused, ForkWorker, WorkerSetUp
from mmsup.ipc.transport.control_channel import ChannelClosed, ControlChannel, DescriptorsLost, close_fds
from mmsup.ipc.transport.dataclass_codec import WireError, from_json, to_json
from mmsup.supervisor.keeper.forking.new_descriptors import NewDescriptors, new_descriptors
from mmsup.supervisor.linux.worker_marks import mark_number

FORK_CHANNEL: Final = 5
"""Place of the fork channel among the descriptors of a zygote, of which the first is its pidfd."""
SET_UP_LIMIT_S: Final = 30.0
"""From then until the worker is set up. It may have what the processor has left over (linux/idle_group.py)."""


@dataclass(slots=True)
class PendingFork:
    spawn: Spawn
    zygote_pidfd: int
    """The zygote's own, of the table of children."""
    kept: tuple[int, ...]
    status: ControlChannel
    due_s: float
    pid: int = 0
    pidfd: int = -1
    is_set_up: bool = False

    def end(self) -> None:
        """The worker, if there is one, runs nothing of its own."""
        if self.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        self.close()

    def close(self) -> None:
        close_fds([*self.kept, *([self.pidfd] if self.pidfd >= 0 else [])])


class Forks:
    def __init__(
        self,
        selector: selectors.BaseSelector,
        on_forked: Callable[[Spawn, int, tuple[int, ...]], None],
        spawn: Callable[[Spawn], None],
        send: Callable[[object, Sequence[int]], None],
    ) -> None:
        """`on_forked` gets pid and descriptors, the pidfd first, which it then owns. `spawn` starts a child by exec.
        `send`: to the controller."""
        self._selector = selector
        self._on_forked = on_forked
        self._spawn = spawn
        self._send = send
        self._pending: dict[str, PendingFork] = {}

    @property
    def due_s(self) -> float:
        """When `check` has something to do."""
        return min((each.due_s for each in self._pending.values()), default=float("inf"))

    def tokens(self) -> list[str]:
        """Of the workers that are being forked."""
        return list(self._pending)

    def start(self, spawn: Spawn, zygote: Sequence[int], lifeline: int, shared: Mapping[str, int]) -> bool:
        """Request a fork of `spawn.zygote`, which has these descriptors, none if it has exited. False if that is
        impossible: the caller starts the worker. OSError if there is no room for more descriptors."""
        if len(zygote) <= FORK_CHANNEL:
            refusal = "it has exited"
        else:
            with new_descriptors(spawn, lifeline, shared) as made:
                try:
                    refusal = "" if self._request(spawn, zygote, made) else "it takes no requests"
                except OSError as error:  # an exec tells it, if it meets it too
                    refusal = str(error)
        if refusal:
            self._send(NotForked(spawn.token, refusal), ())
        return not refusal

    def _request(self, spawn: Spawn, zygote: Sequence[int], made: NewDescriptors) -> bool:
        with contextlib.ExitStack() as stack:
            near, far = ControlChannel.pair()
            stack.callback(far.close)
            groups = []
            for path in spawn.procs_files:
                groups.append(os.open(path, os.O_WRONLY | os.O_CLOEXEC))
                stack.callback(os.close, groups[-1])
            message = ForkWorker(
                keeper=os.getpid(),
                argv=spawn.argv,
                env=spawn.env,
                cwd=spawn.cwd,
                inherited=tuple(made.inherited),
                groups=len(groups),
                oom_score_adj=spawn.oom_score_adj,
                limit_mark=mark_number(spawn.env[WORKER_MARK]) if WORKER_MARK in spawn.env else 0,
            )
            sent = [far.fileno(), made.output, *made.inherited.values(), *groups]
            if not _send_packet(zygote[FORK_CHANNEL], to_json(message), sent):
                near.close()
                return False
        made.is_kept = True
        pending = PendingFork(spawn, zygote[0], made.kept, near, due_s=time.monotonic() + spawn.fork_limit_s)
        self._pending[spawn.token] = pending
        self._selector.register(near.fileno(), selectors.EVENT_READ, lambda: self._read(pending))
        return True

    def on_zygote_exit(self, zygote: str) -> None:
        """What it has not answered it will not answer."""
        for each in [each for each in self._pending.values() if each.spawn.zygote == zygote]:
            self._read(each)
            self._fail(each, "it has exited")

    def check(self, now_s: float) -> None:
        """Kill zygotes that have not answered in time, and give up workers that have not been set up in time."""
        for each in [each for each in self._pending.values() if now_s >= each.due_s]:
            if each.pid:
                self._fail(each, f"the worker was not set up within {SET_UP_LIMIT_S:g} s")
                continue
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(each.zygote_pidfd, signal.SIGKILL)
            for other in [other for other in self._pending.values() if other.spawn.zygote == each.spawn.zygote]:
                if not other.pid:  # requested later, and never to be answered either
                    self._fail(other, f"it did not answer within {each.spawn.fork_limit_s:g} s")

    def cancel(self, token: str) -> None:
        """Nobody wants this worker any more."""
        pending = self._pending[token]
        self._remove(pending)
        pending.end()
        self._send(SpawnFailed(token, "it was stopped before it was forked"), ())

    def give_up(self, text: str) -> None:
        """All of them, for this reason: this program ends."""
        for each in list(self._pending.values()):
            self._fail(each, text)

    def close(self) -> None:
        """The server ends: start nothing any more."""
        for each in list(self._pending.values()):
            self._remove(each)
            each.close()

    def _read(self, pending: PendingFork) -> None:
        """Take what the zygote and the worker have answered."""
        try:
            while (received := pending.status.receive()) is not None and pending.spawn.token in self._pending:
                data, descriptors = received
                self._take(pending, from_json(data, FORK_STATUS), descriptors)
        except (ChannelClosed, DescriptorsLost, WireError, OSError) as error:
            ended = "the worker ended while it was set up" if pending.pid else "it has exited"
            self._fail(pending, str(error) or ended)

    def _take(self, pending: PendingFork, message: Forked | ForkRefused | WorkerSetUp, descriptors: list[int]) -> None:
        match message:
            case Forked(pid) if len(descriptors) == 1 and not pending.pid:
                pending.pid, pending.pidfd = pid, descriptors[0]
                pending.due_s = time.monotonic() + SET_UP_LIMIT_S
            case WorkerSetUp(""):
                close_fds(descriptors)
                pending.is_set_up = True
            case ForkRefused(text) | WorkerSetUp(text):
                close_fds(descriptors)
                self._fail(pending, text)
            case _:
                close_fds(descriptors)
                self._fail(pending, "its answer has no meaning")
        if pending.pid and pending.is_set_up:
            self._finish(pending)

    def _finish(self, pending: PendingFork) -> None:
        try:
            went = pending.status.send(GO)
        except ChannelClosed:
            went = False
        if not went:
            self._fail(pending, "the worker ended while it was set up")
            return
        self._remove(pending)
        self._on_forked(pending.spawn, pending.pid, (pending.pidfd, *pending.kept))

    def _fail(self, pending: PendingFork, text: str) -> None:
        if pending.spawn.token not in self._pending:
            return
        self._remove(pending)
        pending.end()
        self._send(NotForked(pending.spawn.token, text), ())
        self._spawn(replace(pending.spawn, zygote=""))

    def _remove(self, pending: PendingFork) -> None:
        """No worker that is not known yet begins from here on."""
        del self._pending[pending.spawn.token]
        self._selector.unregister(pending.status.fileno())
        pending.status.close()


def _send_packet(fd: int, data: bytes, descriptors: list[int]) -> bool:
    channel = ControlChannel.from_fd(fd)
    try:
        return channel.send(data, descriptors)
    except ChannelClosed:
        return False
    finally:
        channel.detach()
