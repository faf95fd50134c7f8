"""The processes of all co-location groups: which of them an instance joins, and what becomes of them.

A group has as many processes as its models have instances. One is started with its first member and stopped after its
last; it has no restart policy of its own: when it has ended, each of its members is started again as its own policy
says, and the first of them has the next process started.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

from mmsup.ipc.failpoints import failpoint
from mmsup.ipc.messages.keeper_control import ChildDescriptors, ChildExited, ForgetChild, SignalChild, SpawnFailed
from mmsup.ipc.messages.worker_control import StopWorker
from mmsup.ipc.paths import WorkerId, worker_name
from mmsup.ipc.specs import ModelSpec
from mmsup.ipc.transport.codec import encode
from mmsup.ipc.transport.control_channel import close_fds
from mmsup.supervisor.groups import company, launcher
from mmsup.supervisor.groups.group_process import GroupProcess
from mmsup.supervisor.instances.context import GroupMember, InstanceContext
from mmsup.supervisor.processes.child_process import NO_DESCRIPTORS
from mmsup.supervisor.processes.launch_spec import host_token, scratch_dir

STOP_LIMIT_S: Final = 5.0
"""How long one without members may take to exit."""


class GroupPool:
    def __init__(self, context: Callable[[], InstanceContext], next_number: Callable[[], int]) -> None:
        """`next_number`: one that no instance has had or will have."""
        self._context = context
        self._next_number = next_number
        self._processes: dict[int, GroupProcess] = {}

    def __iter__(self) -> Iterator[GroupProcess]:
        return iter(list(self._processes.values()))

    def join(self, member: GroupMember) -> GroupProcess:
        spec = member.spec
        open_ones = [
            each
            for each in self
            if each.takes_members and each.place.name == spec.group and company.can_share(each.place.spec, spec)
        ]
        found = company.choose([_count(each, spec) for each in open_ones], spec.instances)
        if found is not None:
            process = open_ones[found]
        else:
            number = self._next_number()
            place = launcher.start(number, member, self._context())
            process = self._processes[number] = GroupProcess(place, self._on_empty)
        process.members[member.worker] = member
        if process.process is not None:
            process.request(self._context().keeper.send)
        return process

    def rejoin(self, member: GroupMember, note: str) -> GroupProcess | None:
        try:
            process = self._processes.get(int(json.loads(note)["host"]))
        except (ValueError, KeyError):
            return None
        if process is not None:
            process.members[member.worker] = member
            if not process.place.spec.name:
                process.place = replace(process.place, spec=member.spec)
        return process

    def retire(self, worker: WorkerId) -> None:
        for each in self:
            if worker in each.members:
                each.takes_members = False

    def names(self) -> set[str]:
        """Of control groups and scratch directories."""
        return {worker_name(each.place.number, launcher.GENERATION) for each in self}

    # What the keeper reports.

    def on_message(
        self, number: int, message: ChildDescriptors | ChildExited | SpawnFailed, descriptors: list[int]
    ) -> None:
        match message:
            case ChildDescriptors(token, pid, note):
                self._on_started(number, token, pid, note, descriptors)
            case ChildExited(token):
                self._on_exited(number, token)
            case SpawnFailed(_, text):
                process = self._processes.get(number)
                if process is not None:
                    process.start_failed(text)
                    self._on_empty(process)

    def _on_started(self, number: int, token: str, pid: int, note: str, descriptors: list[int]) -> None:
        context, process = self._context(), self._processes.get(number)
        is_new = process is not None
        if process is None and (place := launcher.place_of(number, note, context)) is not None:
            process = self._processes[number] = GroupProcess(place, self._on_empty)
        if process is None or not descriptors:
            close_fds(descriptors)
            context.keeper.send(SignalChild(token, signal.SIGKILL, whole_session=True))
            return
        process.on_started(pid, descriptors, token)
        failpoint("brain.host_adopted")
        if is_new and process.process is not None:
            process.process.channel.send(encode(launcher.configuration(process.place, context)))
            failpoint("brain.host_boot_said")
            text = f"process of group {process.place.name}, pid {pid}"
            context.event_log.record("group_started", text, group=process.place.name, pid=pid)
            process.request(context.keeper.send)
            if not process.members:
                self._stop(process)

    def _on_exited(self, number: int, token: str) -> None:
        process = self._processes.get(number)
        if process is None:
            self._context().keeper.send(ForgetChild(token))
            return
        failpoint("brain.host_ended")
        process.on_exited(token)
        if process.process is None:  # its descriptors found no room, and it was killed
            process.start_failed(NO_DESCRIPTORS)
        name, blame = process.place.name, process.blame_text()
        text = f"the process of group {name} ended{f': {blame}' if blame else ''}"
        pid = process.process.pid if process.process is not None else 0
        self._context().event_log.record("group_ended", text, group=name, pid=pid)
        if not process.members:
            self._remove(process)

    def adopted(self) -> None:
        """All children of the controller before are known."""
        for process in self:
            if not process.members:
                self._on_empty(process)

    def close(self) -> None:
        """The processes go on without this controller."""
        for each in self:
            each.close_watch()
            if each.process is not None and not each.exited_token:
                each.process.close()

    def _on_empty(self, process: GroupProcess) -> None:
        process.takes_members = False
        if process.exited_token or process.has_failed:
            self._remove(process)
        else:
            self._stop(process)  # or, if it has not started yet, as soon as it has

    def _stop(self, process: GroupProcess) -> None:
        if process.process is None or process.is_stopping:
            return
        process.is_stopping = True
        process.process.channel.send(encode(StopWorker()))
        failpoint("brain.host_stop_said")
        asyncio.get_running_loop().call_later(STOP_LIMIT_S, self._kill, process.place.number)

    def _kill(self, number: int) -> None:
        if number in self._processes:
            self._context().keeper.send(SignalChild(host_token(number), signal.SIGKILL, whole_session=True))

    def _remove(self, process: GroupProcess) -> None:
        context, number = self._context(), process.place.number
        if self._processes.pop(number, None) is None:
            return
        process.process = None  # it refers to the group, and its page is unmapped with it
        if process.exited_token:
            context.keeper.send(ForgetChild(process.exited_token))
            failpoint("brain.host_buried")
        scratch = scratch_dir(context.launch_environment, (number, launcher.GENERATION))
        context.cleanup.add(process.group, scratch, "")


def _count(process: GroupProcess, spec: ModelSpec) -> int:
    return sum((each.spec.name, each.spec.version) == (spec.name, spec.version) for each in process.members.values())
