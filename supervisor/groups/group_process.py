"""The process of one co-location group: what it runs in, its members, and how its end is told to them.

A member is an instance like any other, with a token, a channel, a page and a generation of its own. This file knows the
process beneath: it tells each member of what happened to all of them, and which of them has brought it about.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from mmsup.ipc.failpoints import failpoint
from mmsup.ipc.memory.status_page import Activity
from mmsup.ipc.messages.worker_control import HostMember
from mmsup.ipc.paths import WorkerId
from mmsup.ipc.specs import ModelSpec
from mmsup.ipc.transport.codec import encode
from mmsup.ipc.transport.control_channel import close_fds
from mmsup.supervisor.groups.group_members import GroupMembers
from mmsup.supervisor.groups.member_process import MemberProcess
from mmsup.supervisor.instances.worker_exit import crash_summary
from mmsup.supervisor.instances.worker_process import OomWatch
from mmsup.supervisor.linux.cgroup import Cgroup
from mmsup.supervisor.postmortem import stack_trace
from mmsup.supervisor.processes.child_process import ChildListener, ChildProcess
from mmsup.supervisor.processes.launch_spec import member_spawn, worker_token

MEMBER_OF_KEEPER: Final = 3
"""Descriptors of a member that stay with the controller: pidfd, control, page."""


@dataclass(frozen=True, slots=True)
class Place:
    """What a process of a group runs in."""

    number: int
    """Of the process; instances have other numbers."""
    name: str
    """Of the group."""
    spec: ModelSpec
    """Of its first member."""
    group: Cgroup
    device: str


class GroupProcess(GroupMembers):
    def __init__(self, place: Place, on_empty: Callable[[GroupProcess], None]) -> None:
        """`on_empty`: the last member has left."""
        super().__init__()
        self.place = place
        self.process: ChildProcess | None = None
        self.is_stopping = False
        self.has_failed = False
        """It could not be started."""
        self.spawned_s = time.monotonic()
        self.exited_token = ""
        """Set once it has exited: the keeper is to forget it with its last member."""
        self._on_empty = on_empty
        self._requested: set[WorkerId] = set()
        """Members whose descriptors the keeper was asked for."""
        self._oom: OomWatch | None = None

    @property
    def group(self) -> Cgroup:
        return self.place.group

    @property
    def device(self) -> str:
        return self.place.device

    @property
    def has_exited(self) -> bool:
        return bool(self.exited_token)

    def on_started(self, pid: int, descriptors: list[int], token: str) -> None:
        self.process = ChildProcess(token, pid, descriptors, _HostListener(self))
        self._oom = OomWatch(self.group, self._on_oom)

    def adopt(self, worker: WorkerId, descriptors: list[int], listener: ChildListener) -> ChildProcess:
        host = self.process
        assert host is not None, f"a member of a process that was not started: {worker}"
        kept, rest = descriptors[:MEMBER_OF_KEEPER], descriptors[MEMBER_OF_KEEPER:]
        try:
            process = self._processes[worker] = MemberProcess(
                worker_token(*worker), host.pid, kept, listener, host.crash.output, lambda: self._pages_beside(worker)
            )
            # The controller that has requested it may have died before it said so; twice does no harm.
            if process.own_progress().activity is Activity.STARTING:
                host.channel.send(encode(HostMember()), (*rest, kept[-1]))
                failpoint("brain.member_said")
        finally:
            close_fds(rest)
            self._requested.discard(worker)
        return process

    def request(self, send: Callable[[object], None]) -> None:
        """Have the keeper make what the members need that wait for the process to start, or have just joined."""
        for worker in self.members.keys() - self._processes.keys() - self._requested:
            self._requested.add(worker)
            send(member_spawn(worker, self.place.number))
            failpoint("brain.member_asked")

    def leave(self, worker: WorkerId) -> None:
        self.members.pop(worker, None)
        self._requested.discard(worker)
        self._processes.pop(worker, None)
        if not self.members:
            self._on_empty(self)

    def on_exited(self, token: str) -> None:
        """It is dead. Its members are told by the keeper, each by itself."""
        self.exited_token = token
        self.takes_members = False
        if self._blame.worker is None and not self._blame.is_nobodys:
            self._blame_running()
        if self.process is not None:
            self.process.drain_and_close()
        self.close_watch()

    def start_failed(self, text: str) -> None:
        self.takes_members, self.has_failed = False, True
        for member in list(self.members.values()):
            member.on_start_failed(text)

    def close_watch(self) -> None:
        if self._oom is not None:
            self._oom.close()
            self._oom = None

    def on_crash_output(self, text: str) -> None:
        """Of faulthandler: the member that runs has crashed, the others lose their process with it."""
        if stack_trace.is_requested_dump(text):
            return
        self.takes_members = False
        code, summary = crash_summary(text)
        if self._blame.worker is None:
            self._set_blame(self.running(), summary.replace("it crashed", "crashed", 1))
        for worker, member in list(self.members.items()):
            if self._blame.worker in (None, worker):
                member.on_crash(code, summary)
        self._tell_others()

    def on_output(self, data: bytes) -> None:
        """Nobody can tell which of them has printed it: it is in the output of all."""
        for each in list(self._processes.values()):
            each.listener.on_output(data)

    def _on_oom(self) -> None:
        running = self.running()
        self._blame.is_nobodys = running is None
        for worker, member in list(self.members.items()):
            if running in (None, worker):
                member.on_oom()


class _HostListener:
    """What the process itself sends; its members have channels of their own."""

    def __init__(self, host: GroupProcess) -> None:
        self._host = host

    def on_message(self, data: bytes, descriptors: list[int]) -> None:  # noqa: ARG002 - the interface
        close_fds(descriptors)

    def on_closed(self) -> None:
        """Its exit follows. If it lives on, it takes no members, and the liveness of those that wait says so."""
        self._host.takes_members = False

    def on_crash_output(self, text: str) -> None:
        self._host.on_crash_output(text)

    def on_output(self, data: bytes) -> None:
        self._host.on_output(data)
