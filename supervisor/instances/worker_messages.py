"""What a worker says, as events of its instance. A worker is hostile: whatever is no message of ours ends its life."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mmsup.ipc.messages import all as wire
from mmsup.ipc.specs import Metadata
from mmsup.ipc.transport.codec import decode, encode
from mmsup.ipc.transport.control_channel import close_all
from mmsup.ipc.transport.dataclass_codec import WireError
from mmsup.supervisor.instances import actions as hands
from mmsup.supervisor.instances import exit_evidence as obituary
from mmsup.supervisor.instances import lifecycle_events as terms
from mmsup.supervisor.instances.lifecycle_events import COMING_UP, State
from mmsup.supervisor.postmortem import stack_trace as stack

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
            message = decode(data, wire.FROM_WORKER)
        except WireError as error:
            self._instance.apply(terms.Distrusted(f"it sent what is no message of ours: {error}"))
            return
        match message:
            case wire.Hello():
                self._greeted(message)
            case wire.Stage(text, warming):
                self._instance.apply(terms.Staged(warming))
                hands.say_progress(self._instance, text[:TEXT_LIMIT])
            case wire.Ready(metadata):
                self._ready(metadata)
            case _:
                self._instance.apply(terms.LoadFailed(message.code[:CODE_LIMIT], message.text[:TEXT_LIMIT]))

    def lost(self) -> None:
        """It closed its channel, or does not read it."""
        instance = self._instance
        if instance.generation == self._generation and instance.state in COMING_UP | {State.READY}:
            hands.expect(instance, CLOSED_S, terms.Distrusted("it closed its control channel"))

    def crashing(self, text: str) -> None:
        """Its crash pipe spoke; what somebody asked for is no crash."""
        if stack.is_answer(text):
            return
        self._instance.apply(terms.Crashing(*obituary.first_words(text)))

    def printed(self, data: bytes) -> None:
        """Its output."""
        name = f"{self._instance.id}.{self._generation}"
        self._instance.site.logbook(self._instance.release.spec.name).feed(name, data)

    def _ready(self, metadata: Metadata) -> None:
        if len(encode(metadata)) > METADATA_LIMIT:
            self._instance.apply(terms.Distrusted("it describes its model at too great a length"))
            return
        if self._instance.state in COMING_UP:
            self._instance.release.metadata = metadata
        self._instance.apply(terms.BecameReady())

    def _greeted(self, hello: wire.Hello) -> None:
        if hello.wire != wire.WIRE_VERSION:
            text = f"it speaks wire {hello.wire}, this server {wire.WIRE_VERSION}: another version of mmsup"
            self._instance.apply(terms.Distrusted(text))
        elif (hello.instance, hello.generation) != self._instance.key:
            self._instance.apply(terms.Distrusted("it says that it is another one"))
        else:
            self._instance.apply(terms.Staged(warming=False))
