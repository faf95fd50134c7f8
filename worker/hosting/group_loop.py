"""The loop of a process that several models share: waits for all of them, and turns those for which something has come.

One thread: while one model runs, or is loaded, the others wait, as do their status pages. The controller reads on the
pages which of them that is. A model joins with HostMember, and leaves after StopWorker on its own channel or a failed
load; what ends the process ends all of them.
"""

from __future__ import annotations

import logging
import os
import select
import time
from typing import Final

from mmsup.ipc.memory.status_page import StatusPageWriter
from mmsup.ipc.messages.worker_control import TO_WORKER, HostMember, StopWorker
from mmsup.ipc.transport.codec import decode
from mmsup.ipc.transport.control_channel import ChannelClosed, ControlChannel, close_fds
from mmsup.worker.hosting.member import Member
from mmsup.worker.serving.loop import HEARTBEAT_MS
from mmsup.worker.startup.controller_channel import WorkerControlChannel, exit_parent_lost

log = logging.getLogger("mmsup.worker")

HEARTBEAT_NS: Final = HEARTBEAT_MS * 1_000_000


class GroupLoop:
    def __init__(self, control: WorkerControlChannel, page: StatusPageWriter) -> None:
        self._control = control
        self._page = page
        self._members: dict[int, Member] = {}
        """By the descriptor of the poller of each."""
        self._due: dict[int, int] = {}
        """Of those that have to be turned though nothing comes: when."""
        self._beat_ns = 0
        """When all of them are turned for their heartbeats."""
        self._is_stopping = False
        self._epoll = select.epoll()
        self._epoll.register(control.channel.fileno(), select.EPOLLIN)
        self._epoll.register(control.lifeline, 0)  # only its hang-up matters

    def run(self) -> None:
        """Until StopWorker, after which no member joins, and the last member has left."""
        self._page.idle(time.monotonic_ns())
        while self._members or not self._is_stopping:
            self.turn()

    def turn(self) -> None:
        wait_ns = min([self._beat_ns, *self._due.values()]) - time.monotonic_ns()
        ready = {fd for fd, _ in self._epoll.poll(max(wait_ns, 0) / 1e9)}
        if self._control.lifeline in ready:
            exit_parent_lost()
        if self._control.channel.fileno() in ready:
            self._receive()
        now_ns = time.monotonic_ns()
        if now_ns >= self._beat_ns:
            self._beat_ns = now_ns + HEARTBEAT_NS
            self._page.heartbeat(now_ns)
            ready |= self._members.keys()
        elif self._due:
            ready |= {fd for fd, due_ns in self._due.items() if due_ns <= now_ns}
        for fd in ready:
            member = self._members.get(fd)
            if member is not None:
                self._turn(fd, member)

    def _turn(self, fd: int, member: Member) -> None:
        if not member.turn():
            self._due.pop(fd, None)
            self._epoll.unregister(fd)
            del self._members[fd]
            member.close()
            return
        due_ns = member.due_ns(time.monotonic_ns())
        if due_ns is not None:
            self._due[fd] = due_ns
        elif self._due:
            self._due.pop(fd, None)

    def _receive(self) -> None:
        try:
            while (received := self._control.channel.receive()) is not None:
                data, fds = received
                match decode(data, TO_WORKER):
                    case HostMember() if len(fds) == 2:
                        self._add(*fds)
                        continue
                    case StopWorker():
                        self._is_stopping = True
                    case other:
                        log.warning("ignored a %s with %d descriptors", type(other).__name__, len(fds))
                close_fds(fds)
        except ChannelClosed:
            exit_parent_lost()

    def _add(self, channel: int, page: int) -> None:
        identity = os.fstat(channel).st_ino
        if any(each.identity == identity for each in self._members.values()):
            close_fds([channel, page])  # told once more by the next controller
            return
        control = WorkerControlChannel(ControlChannel.from_fd(channel), self._control.lifeline)
        member = Member(control, StatusPageWriter(page), identity)
        os.close(page)  # the mapping stays
        self._members[member.poller.fileno()] = member
        self._epoll.register(member.poller.fileno(), select.EPOLLIN)
