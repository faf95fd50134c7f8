"""The processes of all co-location groups: which of them an instance joins, and what becomes of them.

A group has as many processes as its models have instances. One is started with its first member and stopped after its
last; it has no restart policy of its own: when it has ended, each of its members is started again as its own policy
says, and the first of them has the next process started.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

from mmsup.ipc.messages.handshake import WIRE_VERSION
from mmsup.ipc.messages.keeper_control import ChildDescriptors, ChildExited, ForgetChild, SignalChild, SpawnFailed
from mmsup.ipc.messages.worker_control import ConfigureWorker, StopWorker
from mmsup.ipc.paths import WorkerId, worker_name
from mmsup.ipc.specs import ModelSpec
from mmsup.ipc.transport.codec import encode
from mmsup.ipc.transport.control_channel import close_fds
from mmsup.supervisor.groups import company
from mmsup.supervisor.groups.group_process import GroupProcess, Place
from mmsup.supervisor.instances.context import GroupMember, InstanceContext
from mmsup.supervisor.linux.cgroup import SERVING_WEIGHTS
from mmsup.supervisor.processes.launch_spec import host_spawn, host_token, scratch_dir, worker_spawn

FILE_HEADROOM_BYTES: Final = 64 << 20
"""As for any worker (instances/actions.py)."""
GENERATION: Final = 1
"""Of every such process: each has a number of its own."""
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
        process = open_ones[found] if found is not None else self._start(member)
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

    def find(self, worker: WorkerId) -> GroupProcess | None:
        return next((each for each in self if worker in each.members), None)

    def names(self) -> set[str]:
        """Of control groups and scratch directories."""
        return {worker_name(each.place.number, GENERATION) for each in self}

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
        process = process or self._restore(number, note)
        if process is None or not descriptors:
            close_fds(descriptors)
            context.keeper.send(SignalChild(token, signal.SIGKILL, whole_session=True))
            return
        process.on_started(pid, descriptors, token)
        if is_new and process.process is not None:
            spec = process.place.spec
            configuration = ConfigureWorker(
                wire_version=WIRE_VERSION,
                instance=number,
                generation=GENERATION,
                address="",
                spec=spec,
                data_limit_bytes=0 if process.group.cap_bytes is not None else spec.memory_bytes or 0,
                file_limit_bytes=context.settings.arena_bytes + FILE_HEADROOM_BYTES,
                is_shared=True,
            )
            process.process.channel.send(encode(configuration))
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
        process.on_exited(token)
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

    def _start(self, member: GroupMember) -> GroupProcess:
        context, spec, number = self._context(), member.spec, self._next_number()
        worker = number, GENERATION
        os.makedirs(scratch_dir(context.launch_environment, worker), mode=0o700, exist_ok=True)
        group = context.cgroups.create(worker_name(*worker), spec.memory_bytes)
        group.set_cpu_weights(SERVING_WEIGHTS)
        device = context.devices.assign(member.worker[0], spec)
        start = context.starts.choose(spec, may_wait=True)
        spawn = worker_spawn(spec, worker, context.launch_environment, group.procs_files, device, start)
        note = json.dumps({"group": spec.group, "device": device})
        process = GroupProcess(Place(number, spec.group, spec, group, device), self._on_empty)
        self._processes[number] = process
        context.keeper.send(host_spawn(spawn, number, spec.group, note))
        return process

    def _restore(self, number: int, note: str) -> GroupProcess | None:
        """One that an earlier controller has started. What its first member was, its members will say."""
        try:
            raw = json.loads(note)
            name, device = str(raw["group"]), str(raw["device"])
        except (ValueError, KeyError):
            return None
        group = self._context().cgroups.group(worker_name(number, GENERATION))
        place = Place(number, name, ModelSpec("", "", "", "", "", ""), group, device)
        process = self._processes[number] = GroupProcess(place, self._on_empty)
        return process

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
        asyncio.get_running_loop().call_later(STOP_LIMIT_S, self._kill, process.place.number)

    def _kill(self, number: int) -> None:
        if number in self._processes:
            self._context().keeper.send(SignalChild(host_token(number), signal.SIGKILL, whole_session=True))

    def _remove(self, process: GroupProcess) -> None:
        context, number = self._context(), process.place.number
        if self._processes.pop(number, None) is None:
            return
        if process.exited_token:
            context.keeper.send(ForgetChild(process.exited_token))
        scratch = scratch_dir(context.launch_environment, (number, GENERATION))
        context.cleanup.add(process.group, scratch, "")


def _count(process: GroupProcess, spec: ModelSpec) -> int:
    return sum((each.spec.name, each.spec.version) == (spec.name, spec.version) for each in process.members.values())
