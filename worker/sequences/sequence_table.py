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
from typing import Final, Generic

from mmsup.ipc.bounded_cache import BoundedCache
from mmsup.worker.sequences.live_sequence import NO_SLOT, L, Sequence, SequencedRequest, SequenceMemory
from mmsup.worker.sequences.sequence_signature import SequenceId
from mmsup.worker.sequences.sequence_slots import SequenceSlots

NEVER_NS: Final = 1 << 63
EXPIRED_LIMIT: Final = 4096
"""Ids of sequences that were idle for too long, remembered for the text of an error."""


class Refusal(enum.Enum):
    UNKNOWN = "the sequence is not live, and the request does not start it"
    FULL = "no slot is free, and the request does not wait for one"


class SequenceTable(Generic[L]):
    def __init__(self, slots: int, idle_ns: int) -> None:
        self._idle_ns = idle_ns
        self.slots: SequenceSlots[L] = SequenceSlots(slots)
        self.live: dict[SequenceId, Sequence[L]] = {}
        self.waiting = self.slots.waiting
        """Of `live`, those without a slot."""
        self.ready = self.slots.ready
        """Of `live`, those with a slot and a request."""
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
            if not step.may_wait and self.slots.used == self.slots.count:
                return Refusal.FULL
            sequence = self.live[step.id] = Sequence(step.id)
            self._expired.recent.pop(step.id, None)
            sequence.pending.append(request)
            self.slots.place(sequence)
            self.slots.fill()
        elif not sequence.takes(step):
            return Refusal.UNKNOWN
        else:
            sequence.pending.append(request)
            self.slots.place(sequence)
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
            self.slots.release(sequence)
        if sequence.has_begun or sequence.pending:
            self.slots.place(sequence)
        else:
            del self.live[sequence.id]
        self.slots.fill()
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
        while self.slots.idle:
            sequence = next(iter(self.slots.idle.values()))
            if now_ns - sequence.last_ns < self._idle_ns:
                break
            self._expired.add(sequence.id, True)  # noqa: FBT003 - a set
            self._remove(sequence)
            ended += 1
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
        return lost

    def was_idle(self, number: SequenceId) -> bool:
        """Whether this sequence ended because it was idle for too long, as far as that is remembered."""
        return self._expired.get(number) is not None

    def next_event_ns(self) -> int:
        """When `end_idle` or `pop_late` may have something to do for requests that wait."""
        idle = next(iter(self.slots.idle.values()), None) if self.waiting else None
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
            self.slots.place(sequence)
        else:
            self._remove(sequence)
        return lost

    def _remove_followers(self, sequence: Sequence[L], at: int) -> list[SequencedRequest[L]]:
        """Remove the requests from this place on, up to the next START."""
        lost: list[SequencedRequest[L]] = []
        while at < len(sequence.pending) and not sequence.pending[at].step.is_start:
            lost.append(sequence.pending[at])
            del sequence.pending[at]
        self.size -= len(lost)
        return lost

    def _remove(self, sequence: Sequence[L]) -> None:
        self.slots.release(sequence)
        del self.live[sequence.id]
        self.slots.fill()
