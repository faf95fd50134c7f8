"""Turns what one worker process sends into events of its instance.

A worker runs the model's code, so it is not trusted: a message that is not valid ends it.
"""

from __future__ import annotations

import asyncio
import json
from typing import Final

from mmsup.ipc.failpoints import failpoint
from mmsup.ipc.messages.handshake import WIRE_VERSION, Hello
from mmsup.ipc.messages.keeper_control import ChildDescriptors
from mmsup.ipc.messages.worker_control import (
    FROM_WORKER,
    LoadProgress,
    MemberLeft,
    ModelOffloaded,
    ModelRestored,
    WorkerReady,
)
from mmsup.ipc.specs import Metadata
from mmsup.ipc.transport.codec import decode, encode
from mmsup.ipc.transport.control_channel import close_fds
from mmsup.ipc.transport.dataclass_codec import WireError
from mmsup.supervisor.instances import actions, lifecycle_events, worker_exit
from mmsup.supervisor.instances.instance import Instance
from mmsup.supervisor.instances.lifecycle_events import ALIVE, STARTING_UP, InstanceState
from mmsup.supervisor.postmortem import stack_trace
from mmsup.supervisor.processes.child_process import ChildProcess
from mmsup.supervisor.processes.launch_spec import worker_token

_LEAVING: Final = frozenset({InstanceState.DRAINING, InstanceState.STOPPING, InstanceState.QUARANTINED})
CODE_LIMIT: Final = 40
TEXT_LIMIT: Final = 2000
"""Characters of a reason that a worker gives; it goes to clients and into the event log."""
METADATA_LIMIT: Final = 64 << 10
"""Together with the spec it has to fit into one message to a gateway."""
CLOSED_EXIT_LIMIT_S: Final = 1.0
"""An exit closes the control channel too. A worker that lives for so long afterwards has closed it on purpose."""


def started(instance: Instance, message: ChildDescriptors, descriptors: list[int]) -> None:
    """The keeper has started the process of an instance, or hands it over to a new controller."""
    worker = instance.require_worker()
    pid, instance.start = message.pid, instance.start or _start_in(message.note)
    if instance.revision.spec.group:
        worker.process = _in_group(instance, message, descriptors)
    else:
        worker.process = ChildProcess(worker_token(*instance.worker_id), pid, descriptors, WorkerMessages(instance))
    worker.artifact_digest = instance.context.crash_collector.artifact_digest(instance.revision.spec)
    actions.start_liveness_probe(instance, worker.process)
    actions.follow_start(instance, pid)
    actions.watch_oom(instance)
    failpoint("brain.adopted")


def _in_group(instance: Instance, message: ChildDescriptors, descriptors: list[int]) -> ChildProcess:
    worker = instance.require_worker()
    if worker.shared is None:  # an earlier controller has started it
        worker.shared = instance.context.groups.rejoin(actions.group_member(instance), message.note)
    assert worker.shared is not None, f"instance {instance.id} is in the process of no group that there is"
    return worker.shared.adopt(instance.worker_id, descriptors, WorkerMessages(instance))


def not_forked(instance: Instance, text: str) -> None:
    """The zygote that was to fork it did not, and the keeper starts it by exec."""
    instance.start = f"exec: the zygote did not fork it: {text}"
    instance.context.starts.refused(instance.revision.spec)
    instance.record("not_forked", f"started by exec: the zygote did not fork it: {text}")


def _start_in(note: str) -> str:
    """How a worker was started that an earlier controller has requested."""
    try:
        return str(json.loads(note)["start"])
    except (ValueError, KeyError):
        return ""


class WorkerMessages:
    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._generation = instance.generation

    def on_message(self, data: bytes, descriptors: list[int]) -> None:
        close_fds(descriptors)  # a worker has no reason to send any
        try:
            message = decode(data, FROM_WORKER)
        except WireError as error:
            self._violated(f"it sent an invalid message: {error}")
            return
        match message:
            case Hello():
                self._on_hello(message)
            case LoadProgress(text, is_warm_up):
                self._instance.apply(lifecycle_events.LoadProgressed(is_warm_up))
                self._instance.report_progress(text[:TEXT_LIMIT])
            case MemberLeft():
                asyncio.get_running_loop().call_soon(worker_exit.left, self._instance, self._generation)
            case WorkerReady(metadata, _, imported, can_offload):
                self._instance.context.starts.learn(
                    self._instance.revision.spec, imported, is_forked=self._instance.is_forked
                )
                self._instance.revision.can_offload = can_offload and not self._instance.zeromq_address()
                self._on_ready(metadata)
            case ModelOffloaded(took_s, freed_bytes):
                self._instance.apply(lifecycle_events.Offloaded(max(took_s, 0.0), max(freed_bytes, 0)))
            case ModelRestored(took_s):
                self._instance.apply(lifecycle_events.Restored(max(took_s, 0.0)))
            case _:
                code, text = message.code[:CODE_LIMIT], message.text[:TEXT_LIMIT]
                self._instance.apply(lifecycle_events.LoadReportedFailed(code, text, message.detail[:TEXT_LIMIT]))

    def on_closed(self) -> None:
        instance = self._instance
        if instance.generation == self._generation and instance.state in ALIVE - _LEAVING:
            event = lifecycle_events.ProtocolViolated("it closed its control channel")
            actions.expect_exit(instance, CLOSED_EXIT_LIMIT_S, event)

    def on_crash_output(self, text: str) -> None:
        """The first output of faulthandler: a crash, unless it is a requested stack dump."""
        if not stack_trace.is_requested_dump(text):
            self._instance.apply(lifecycle_events.CrashReported(*worker_exit.crash_summary(text)))

    def on_output(self, data: bytes) -> None:
        output = self._instance.context.model_output(self._instance.revision.spec.name)
        output.append(f"{self._instance.id}.{self._generation}", data)

    def _on_ready(self, metadata: Metadata) -> None:
        if len(encode(metadata)) > METADATA_LIMIT:
            self._violated("the metadata of its model is too large")
            return
        if self._instance.state in STARTING_UP:
            self._instance.revision.metadata = metadata
        self._instance.apply(lifecycle_events.BecameReady())

    def _on_hello(self, hello: Hello) -> None:
        if hello.wire_version != WIRE_VERSION:
            self._violated(f"it speaks wire {hello.wire_version}, this server {WIRE_VERSION}: another version of mmsup")
        elif (hello.instance, hello.generation) != self._instance.worker_id:
            self._violated("it identifies itself as another worker")
        else:
            self._instance.apply(lifecycle_events.LoadProgressed(is_warm_up=False))

    def _violated(self, text: str) -> None:
        self._instance.apply(lifecycle_events.ProtocolViolated(text))
