"""What a worker says, as events of its instance. A worker is hostile: whatever is no message of ours ends its life."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mmsup.ipc.messages import handshake, worker_control
from mmsup.ipc.specs import Metadata
from mmsup.ipc.transport.codec import decode, encode
from mmsup.ipc.transport.control_channel import close_all
from mmsup.ipc.transport.dataclass_codec import WireError
from mmsup.supervisor.instances import actions, exit_evidence, lifecycle_events
from mmsup.supervisor.instances.lifecycle_events import COMING_UP, State
from mmsup.supervisor.postmortem import stack_trace

if TYPE_CHECKING:
    from mmsup.supervisor.instances.instance import Instance

CODE_LIMIT: Final = 40
TEXT_LIMIT: Final = 2000
"""Of a reason that a worker gives; it goes to clients and into the journal."""
METADATA_LIMIT: Final = 64 << 10
"""So that with its spec it fits into one message to a gateway."""
CLOSED_S: Final = 1.0
"""A death closes the channel too. Only one that has not died by then has closed it on purpose."""


class WorkerEars:
    """The listener of one life: once its instance has another, it is deaf."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._generation = instance.generation

    def heard(self, data: bytes, descriptors: list[int]) -> None:
        """A message of the worker's."""
        close_all(descriptors)  # a worker has none to give
        try:
            message = decode(data, worker_control.FROM_WORKER)
        except WireError as error:
            self._instance.apply(lifecycle_events.Distrusted(f"it sent what is no message of ours: {error}"))
            return
        match message:
            case handshake.Hello():
                self._greeted(message)
            case worker_control.Stage(text, warming):
                self._instance.apply(lifecycle_events.Staged(warming))
                actions.say_progress(self._instance, text[:TEXT_LIMIT])
            case worker_control.Ready(metadata):
                self._ready(metadata)
            case _:
                self._instance.apply(lifecycle_events.LoadFailed(message.code[:CODE_LIMIT], message.text[:TEXT_LIMIT]))

    def lost(self) -> None:
        """It closed its channel, or does not read it."""
        instance = self._instance
        if instance.generation == self._generation and instance.state in COMING_UP | {State.READY}:
            actions.expect(instance, CLOSED_S, lifecycle_events.Distrusted("it closed its control channel"))

    def crashing(self, text: str) -> None:
        """Its crash pipe spoke; what somebody asked for is no crash."""
        if stack_trace.is_answer(text):
            return
        self._instance.apply(lifecycle_events.Crashing(*exit_evidence.first_words(text)))

    def printed(self, data: bytes) -> None:
        """Its output."""
        name = f"{self._instance.id}.{self._generation}"
        self._instance.site.logbook(self._instance.release.spec.name).feed(name, data)

    def _ready(self, metadata: Metadata) -> None:
        if len(encode(metadata)) > METADATA_LIMIT:
            self._instance.apply(lifecycle_events.Distrusted("it describes its model at too great a length"))
            return
        if self._instance.state in COMING_UP:
            self._instance.release.metadata = metadata
        self._instance.apply(lifecycle_events.BecameReady())

    def _greeted(self, hello: handshake.Hello) -> None:
        if hello.wire != handshake.WIRE_VERSION:
            text = f"it speaks wire {hello.wire}, this server {handshake.WIRE_VERSION}: another version of mmsup"
            self._instance.apply(lifecycle_events.Distrusted(text))
        elif (hello.instance, hello.generation) != self._instance.key:
            self._instance.apply(lifecycle_events.Distrusted("it says that it is another one"))
        else:
            self._instance.apply(lifecycle_events.Staged(warming=False))
