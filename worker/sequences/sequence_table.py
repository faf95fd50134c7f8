"""The sequences of one worker: which are live, which have a slot, what each waits for. Pure.

A sequence begins with a request that has the START flag, and is live until one with the END flag has run, or until it
had no request for the idle time. It has a slot from its first request on, or waits for one behind the others that do;
only with a slot its requests run, one at a time and in order of arrival. A START in a live sequence begins it anew in
the same slot, behind its requests that came before.

What can never run is never run by another state: a request without START whose sequence is not live is refused, also
where its own START was cancelled, was late, or failed.
"""

from __future__ import annotations

import enum
import heapq
from collections import OrderedDict, deque
from collections.abc import Hashable, Iterator
from typing import Any, Final, Generic, TypeVar

from mmsup.ipc.bounded_cache import BoundedCache
from mmsup.ipc.messages.data import Infer
from mmsup.ipc.tensors.numpy_arrays import Array
from mmsup.worker.batching.priority_queue import QueuedRequest
from mmsup.worker.batching.request_signature import RequestSignature
from mmsup.worker.sequences.sequence_signature import SequenceId, SequenceStep

NO_SLOT: Final = -1
NEVER_NS: Final = 1 << 63
EXPIRED_LIMIT: Final = 4096
"""Ids of sequences that were idle for too long, remembered for the text of an error."""
L = TypeVar("L", bound=Hashable)


class Refusal(enum.Enum):
    UNKNOWN = "the sequence is not live, and the request does not start it"
    FULL = "no slot is free, and the request does not wait for one"


class SequencedRequest(QueuedRequest[L]):
    __slots__ = ("is_last", "step")

    def __init__(
        self, link: L, message: Infer, signature: RequestSignature, step: SequenceStep, arrived_ns: int
    ) -> None:
        super().__init__(link, message, signature, arrived_ns, 0)
        self.step = step
        self.is_last = step.is_end
        """Its sequence is over behind it: it has the END flag, or a START that followed it was given up."""


class SequenceMemory:
    """What is kept for a sequence from one of its requests to the next."""

    __slots__ = ("for_model", "tensors")

    def __init__(self) -> None:
        self.for_model: dict[str, Any] = {}
        """Of a user's class."""
        self.tensors: dict[str, Array] = {}
        """The implicit state, by input."""


class Sequence(Generic[L]):
    __slots__ = ("has_begun", "id", "last_ns", "memory", "pending", "slot")

    def __init__(self, number: SequenceId) -> None:
        self.id = number
        self.slot = NO_SLOT
        self.pending: deque[SequencedRequest[L]] = deque()
        self.has_begun = False
        """A START has run, and no END since."""
        self.last_ns = 0
        """When its last request ended."""
        self.memory = SequenceMemory()

    def takes(self, step: SequenceStep) -> bool:
        """Whether a request may follow those that are here."""
        return step.is_start or (not self.pending[-1].is_last if self.pending else self.has_begun)


class SequenceTable(Generic[L]):
    def __init__(self, slots: int, idle_ns: int) -> None:
        self.slots = slots
        self._idle_ns = idle_ns
        self._free = list(range(slots))
        """A heap: the lowest is taken first, so that batches by slot stay short."""
        self.live: dict[SequenceId, Sequence[L]] = {}
        self.waiting: OrderedDict[SequenceId, Sequence[L]] = OrderedDict()
        """Of `live`, those without a slot, in order of arrival."""
        self.ready: dict[SequenceId, Sequence[L]] = {}
        """Of `live`, those with a slot and a request."""
        self._idle: OrderedDict[SequenceId, Sequence[L]] = OrderedDict()
        """Of `live`, those with a slot and without a request, the one first that is so for longest."""
        self._expired: BoundedCache[SequenceId, bool] = BoundedCache(EXPIRED_LIMIT)
        self._next_deadline_ns = NEVER_NS
        """No request has an earlier one."""
        self.size = 0
        """Requests that wait."""

    # Requests.

    def submit(self, request: SequencedRequest[L]) -> Refusal | None:
        """Queue a request; why not, if it cannot be."""
        step = request.step
        sequence = self.live.get(step.id)
        if sequence is None:
            if not step.is_start:
                return Refusal.UNKNOWN
            if not step.may_wait and not self._free:
                return Refusal.FULL
            sequence = self.live[step.id] = Sequence(step.id)
            self._expired.recent.pop(step.id, None)
            self.waiting[step.id] = sequence
            sequence.pending.append(request)
            self._fill_slots()
        elif not sequence.takes(step):
            return Refusal.UNKNOWN
        else:
            sequence.pending.append(request)
            self._place(sequence)
        self.size += 1
        self._next_deadline_ns = min(self._next_deadline_ns, request.message.deadline_ns)
        return None

    def has(self, request: SequencedRequest[L]) -> bool:
        """Whether a request of the same link, id and sequence is queued."""
        sequence = self.live.get(request.step.id)
        return sequence is not None and any(each.key == request.key for each in sequence.pending)

    def take(self, sequence: Sequence[L]) -> SequencedRequest[L]:
        """Remove the first request of a sequence that is ready; `finish` follows."""
        self.size -= 1
        del self.ready[sequence.id]
        return sequence.pending.popleft()

    def finish(
        self, sequence: Sequence[L], request: SequencedRequest[L], now_ns: int, *, has_failed: bool
    ) -> list[SequencedRequest[L]]:
        """A request has run. Returns those that can never run because of it, which are removed."""
        sequence.last_ns = now_ns
        step, lost = request.step, list[SequencedRequest[L]]()
        if step.is_start:
            sequence.has_begun = not has_failed
            if has_failed:
                lost = self._remove_followers(sequence, 0)
        if request.is_last:
            sequence.has_begun = False
        if not sequence.has_begun:
            sequence.memory = SequenceMemory()
            self._free_slot(sequence)
        if sequence.has_begun or sequence.pending:
            self._place(sequence)
        else:
            del self.live[sequence.id]
        self._fill_slots()
        return lost

    def cancel(self, link: L, number: int) -> list[SequencedRequest[L]]:
        """Remove the request of this link and id, and those that can never run without it; it is the first of them.
        Empty if it is not queued any more."""
        for sequence in self.live.values():
            for request in sequence.pending:
                if request.key == (link, number):
                    return self._drop(sequence, request)
        return []

    def drop_link(self, link: L) -> list[SequencedRequest[L]]:
        """Remove all requests of a link that was closed; returns requests of others that can never run without."""
        lost: list[SequencedRequest[L]] = []
        for sequence in list(self.live.values()):
            while mine := [each for each in sequence.pending if each.link is link]:
                lost += self._drop(sequence, mine[0])
        return [each for each in lost if each.link is not link]

    def pop_late(self, now_ns: int) -> list[tuple[SequencedRequest[L], bool]]:
        """Remove the requests that are past their deadline, and those that can never run without them; whether each is
        late itself."""
        if now_ns < self._next_deadline_ns:
            return []
        gone: list[tuple[SequencedRequest[L], bool]] = []
        for sequence in list(self.live.values()):
            while late := next((each for each in sequence.pending if each.message.deadline_ns <= now_ns), None):
                gone += [(each, each.message.deadline_ns <= now_ns) for each in self._drop(sequence, late)]
        self._next_deadline_ns = min(
            (each.message.deadline_ns for sequence in self.live.values() for each in sequence.pending),
            default=NEVER_NS,
        )
        return gone

    # Sequences.

    def end_idle(self, now_ns: int) -> int:
        """End the sequences that had no request for the idle time; how many."""
        ended = 0
        while self._idle:
            sequence = next(iter(self._idle.values()))
            if now_ns - sequence.last_ns < self._idle_ns:
                break
            self._expired.add(sequence.id, True)  # noqa: FBT003 - a set
            self._remove(sequence)
            ended += 1
        if ended:
            self._fill_slots()
        return ended

    def forget(self, number: SequenceId) -> list[SequencedRequest[L]]:
        """End a sequence that begins anew at another worker; returns its requests, which can never run."""
        sequence = self.live.get(number)
        if sequence is None:
            return []
        lost = list(sequence.pending)
        self.size -= len(lost)
        sequence.pending.clear()
        self._remove(sequence)
        self._fill_slots()
        return lost

    def was_idle(self, number: SequenceId) -> bool:
        """Whether this sequence ended because it was idle for too long, as far as that is remembered."""
        return self._expired.get(number) is not None

    def next_event_ns(self) -> int:
        """When `end_idle` or `pop_late` may have something to do for requests that wait."""
        idle = next(iter(self._idle.values()), None) if self.waiting else None
        return min(self._next_deadline_ns, NEVER_NS if idle is None else idle.last_ns + self._idle_ns)

    # Inside.

    def _drop(self, sequence: Sequence[L], request: SequencedRequest[L]) -> list[SequencedRequest[L]]:
        """Remove a request, and with a START what follows it; the state before that START is given up."""
        at = sequence.pending.index(request)
        del sequence.pending[at]
        self.size -= 1
        lost = [request]
        if request.step.is_start:
            lost += self._remove_followers(sequence, at)
            if at:
                sequence.pending[at - 1].is_last = True
            else:
                sequence.has_begun, sequence.memory = False, SequenceMemory()
        if sequence.pending or (sequence.has_begun and sequence.slot != NO_SLOT):
            self._place(sequence)
        else:
            self._remove(sequence)
            self._fill_slots()
        return lost

    def _remove_followers(self, sequence: Sequence[L], at: int) -> list[SequencedRequest[L]]:
        """Remove the requests from this place on, up to the next START."""
        lost: list[SequencedRequest[L]] = []
        while at < len(sequence.pending) and not sequence.pending[at].step.is_start:
            lost.append(sequence.pending[at])
            del sequence.pending[at]
        self.size -= len(lost)
        return lost

    def _place(self, sequence: Sequence[L]) -> None:
        """Put it where it belongs by its slot and its requests."""
        if sequence.slot == NO_SLOT:
            self.waiting.setdefault(sequence.id, sequence)
        elif sequence.pending:
            self._idle.pop(sequence.id, None)
            self.ready[sequence.id] = sequence
        else:
            self.ready.pop(sequence.id, None)
            self._idle[sequence.id] = sequence
            self._idle.move_to_end(sequence.id)

    def _remove(self, sequence: Sequence[L]) -> None:
        self._free_slot(sequence)
        self.waiting.pop(sequence.id, None)
        del self.live[sequence.id]

    def _free_slot(self, sequence: Sequence[L]) -> None:
        if sequence.slot != NO_SLOT:
            heapq.heappush(self._free, sequence.slot)
            sequence.slot = NO_SLOT
        self.ready.pop(sequence.id, None)
        self._idle.pop(sequence.id, None)

    def _fill_slots(self) -> None:
        while self._free and self.waiting:
            _, sequence = self.waiting.popitem(last=False)
            sequence.slot = heapq.heappop(self._free)
            self._place(sequence)

    def in_slots(self) -> Iterator[Sequence[L]]:
        """The sequences that have a slot."""
        return (each for each in self.live.values() if each.slot != NO_SLOT)
