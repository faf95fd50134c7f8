"""The requests in flight at one worker: what is kept of each until its reply, what it gets when the worker exits."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from mmsup.gateway.dispatch.reply_validation import ValidatedSignature
from mmsup.gateway.dispatch.streams.part_queue import PartQueue
from mmsup.ipc.errors import ServerError
from mmsup.ipc.memory.arena import Slot
from mmsup.ipc.messages.data import Infer, InferReply, TensorLocation
from mmsup.ipc.transport.codec import CallRecord


class WorkerExited(Exception):  # noqa: N818 - an event; whose fault it was is in the verdict
    """The worker exited with this request in flight.

    `started`: the request may have been executing. `executing`: it was in the batch that was running. `alone`: nothing
    else was.
    """

    def __init__(self, *, started: bool, executing: bool = False, alone: bool = False) -> None:
        super().__init__("the worker exited")
        self.started = started
        self.executing = executing
        self.alone = alone


RequestEvent = InferReply | WorkerExited | ServerError
"""What a request in flight may get: a reply, the exit of its worker, or an error because its deadline passed."""


class ReplyForm(Protocol):
    """What a reply to a known request looks like that was validated before; all else is validated anew."""

    @property
    def reply_signature(self) -> bytes: ...
    @property
    def output_sizes(self) -> list[int]: ...
    @property
    def only_size(self) -> int | None:
        """Of the only output."""
        ...


class KnownInFlight(Protocol):
    """A known request in flight (infer/known_in_flight.py): without shared memory, and with one expected form of reply.
    Whatever else happens to it, it first becomes an ordinary InFlightRequest."""

    deadline_ns: int

    @property
    def known(self) -> ReplyForm: ...
    def materialise(self) -> InFlightRequest:
        """Take its own place in the table of requests in flight as an ordinary request."""
        ...

    def finish(self, replies: Sequence[Any]) -> None:  # KnownReply, of the same class as this one
        """Count and answer these requests of one link, of which this is one."""
        ...


KnownReply = tuple[KnownInFlight, tuple[int, int, int, int, int, int], list[bytes]]
"""With what its record says, checked by the form: times, batch and rows; outputs."""


@dataclass(slots=True, eq=False)
class InFlightRequest:
    known: ClassVar[None] = None
    message: Infer
    input_slots: list[Slot]
    """Freed at the reply."""
    on_event: Callable[[RequestEvent], None]
    """Called at most once for the request and once for each larger grant."""
    output_slot: Slot | None = None
    client_id: str = ""
    """The client's own id of the request, if it gave one."""
    sent_ns: int = 0
    notified: bool = False
    """`on_event` was called and nothing was requested since."""
    abandoned: bool = False
    """Nobody waits for the reply any more; the worker was told to cancel."""
    larger_grants: int = 0
    """How often the worker replied that its output buffer is too small."""
    early_reply: InferReply | None = None
    """The final reply, if it came while a larger output buffer was being allocated."""
    signature: ValidatedSignature | None = None
    """Of its reply, once that has come."""
    parts: PartQueue[RequestEvent] | None = None
    """What follows the first response of many; set when that has come."""

    @property
    def deadline_ns(self) -> int:
        return self.message.deadline_ns

    def materialise(self) -> InFlightRequest:
        return self

    def output_bytes(self, location: TensorLocation) -> memoryview:
        """The bytes of an output; valid until the output slot is freed."""
        if not isinstance(location, tuple):
            return memoryview(location)
        assert self.output_slot is not None, "reply validation rejects locations without a granted buffer"
        _, offset, size = location
        start = offset - self.output_slot.offset
        return self.output_slot.view[start : start + size]


@dataclass(frozen=True, slots=True)
class LostRequest:
    """A request that was in flight when the worker exited; see WorkerExited."""

    request: InFlightRequest
    started: bool
    executing: bool = False


@dataclass(slots=True)
class CloseRecord:
    """What was in flight when the link was closed."""

    lost_requests: list[LostRequest] = field(default_factory=list)
    ran_alone: bool = False
    """The batch that was running was a single request."""


class CallsOfWorker(Protocol):
    """What the requests in flight at one worker have asked of other models."""

    def on_record(self, record: CallRecord) -> str:
        """Something that the worker sent; what is wrong with it, or an empty text."""
        ...

    def on_abandoned(self, number: int) -> None:
        """Nobody waits for this request any more, nor for what it has asked for."""

    def close(self) -> None:
        """The worker has ended."""


@dataclass(slots=True)
class InFlightTable:
    """The requests at one worker, by id, oldest first."""

    requests: dict[int, InFlightRequest | KnownInFlight] = field(default_factory=dict)
    last_id: int = field(default_factory=lambda: random.getrandbits(62) + 1)
    """Ids rise from a random start, so that a reply to another gateway process matches no request."""
    expiry_timer: asyncio.TimerHandle | None = None
    unexpected_replies: int = 0
    calls: CallsOfWorker | None = None
    """None where models may not call others."""

    def close(self, started: Set[int], executing: Set[int]) -> list[LostRequest]:
        """The worker exited: end every request and return all, oldest first. `started`: ids that started to execute
        last. `executing`: ids in the batch that was running. Both include other gateways' requests. A request that was
        asked for a larger grant has run before, however long ago."""
        if self.expiry_timer is not None:
            self.expiry_timer.cancel()
        if self.calls is not None:
            self.calls.close()
        requests = {number: each.materialise() for number, each in list(self.requests.items())}
        self.requests = {}
        ran = {number for number, each in requests.items() if number in started or each.larger_grants}
        is_alone = len(executing or ran) == 1
        for number, each in requests.items():
            if not each.notified:  # else it is abandoned, or its owner is about to grant and will see the close
                each.notified = True
                each.on_event(WorkerExited(started=number in ran, executing=number in executing, alone=is_alone))
        return [LostRequest(each, number in ran, number in executing) for number, each in requests.items()]
