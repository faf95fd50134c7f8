"""What a worker says, as events of its instance. A worker is hostile: whatever is no message of ours ends its life."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mmsup.ipc.messages.handshake import WIRE_VERSION, Hello
from mmsup.ipc.messages.worker_control import FROM_WORKER, LoadProgress, WorkerReady
from mmsup.ipc.specs import Metadata
from mmsup.ipc.transport.codec import decode, encode
from mmsup.ipc.transport.control_channel import close_fds
from mmsup.ipc.transport.dataclass_codec import WireError
from mmsup.supervisor.instances import actions, exit_evidence, lifecycle_events
from mmsup.supervisor.instances.lifecycle_events import STARTING_UP, InstanceState
from mmsup.supervisor.postmortem import stack_trace

if TYPE_CHECKING:
    from mmsup.supervisor.instances.instance import Instance

CODE_LIMIT: Final = 40
TEXT_LIMIT: Final = 2000
"""Of a reason that a worker gives; it goes to clients and into the journal."""
METADATA_LIMIT: Final = 64 << 10
"""So that with its spec it fits into one message to a gateway."""
CLOSED_EXIT_LIMIT_S: Final = 1.0
"""A death closes the channel too. Only one that has not died by then has closed it on purpose."""


class WorkerMessages:
    """The listener of one life: once its instance has another, it is deaf."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._generation = instance.generation

    def on_message(self, data: bytes, descriptors: list[int]) -> None:
        """A message of the worker's."""
        close_fds(descriptors)  # a worker has none to give
        try:
            message = decode(data, FROM_WORKER)
        except WireError as error:
            self._instance.apply(lifecycle_events.ProtocolViolated(f"it sent what is no message of ours: {error}"))
            return
        match message:
            case Hello():
                self._on_hello(message)
            case LoadProgress(text, warming):
                self._instance.apply(lifecycle_events.LoadProgressed(warming))
                actions.report_progress(self._instance, text[:TEXT_LIMIT])
            case WorkerReady(metadata):
                self._on_ready(metadata)
            case _:
                self._instance.apply(
                    lifecycle_events.LoadReportedFailed(message.code[:CODE_LIMIT], message.text[:TEXT_LIMIT])
                )

    def on_closed(self) -> None:
        """It closed its channel, or does not read it."""
        instance = self._instance
        if instance.generation == self._generation and instance.state in STARTING_UP | {InstanceState.READY}:
            actions.expect_exit(
                instance, CLOSED_EXIT_LIMIT_S, lifecycle_events.ProtocolViolated("it closed its control channel")
            )

    def on_crash_output(self, text: str) -> None:
        """Its crash pipe spoke; what somebody asked for is no crash."""
        if stack_trace.is_requested_dump(text):
            return
        self._instance.apply(lifecycle_events.CrashReported(*exit_evidence.crash_summary(text)))

    def on_output(self, data: bytes) -> None:
        """Its output."""
        name = f"{self._instance.id}.{self._generation}"
        self._instance.context.model_output(self._instance.revision.spec.name).append(name, data)

    def _on_ready(self, metadata: Metadata) -> None:
        if len(encode(metadata)) > METADATA_LIMIT:
            self._instance.apply(lifecycle_events.ProtocolViolated("it describes its model at too great a length"))
            return
        if self._instance.state in STARTING_UP:
            self._instance.revision.metadata = metadata
        self._instance.apply(lifecycle_events.BecameReady())

    def _on_hello(self, hello: Hello) -> None:
        if hello.wire_version != WIRE_VERSION:
            text = f"it speaks wire {hello.wire_version}, this server {WIRE_VERSION}: another version of mmsup"
            self._instance.apply(lifecycle_events.ProtocolViolated(text))
        elif (hello.instance, hello.generation) != self._instance.worker_id:
            self._instance.apply(lifecycle_events.ProtocolViolated("it says that it is another one"))
        else:
            self._instance.apply(lifecycle_events.LoadProgressed(warming=False))
