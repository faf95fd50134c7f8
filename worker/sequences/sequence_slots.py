"""The slots of one worker: which sequences have one, which wait for one, which have a request to run. Pure."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from typing import Generic

from mmsup.worker.sequences.live_sequence import NO_SLOT, L, Sequence
from mmsup.worker.sequences.sequence_signature import SequenceId


class SequenceSlots(Generic[L]):
    """Each live sequence is in one of the three."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = list(range(count))
        """A heap: the lowest is taken first, so that batches by slot stay short."""
        self.waiting: OrderedDict[SequenceId, Sequence[L]] = OrderedDict()
        """Without a slot, in order of arrival."""
        self.ready: dict[SequenceId, Sequence[L]] = {}
        """With a slot and a request."""
        self.idle: OrderedDict[SequenceId, Sequence[L]] = OrderedDict()
        """With a slot and without a request, the one first that is so for longest."""

    @property
    def used(self) -> int:
        return self.count - len(self._free)

    def place(self, sequence: Sequence[L]) -> None:
        """Put it where it belongs by its slot and its requests."""
        if sequence.slot == NO_SLOT:
            self.waiting.setdefault(sequence.id, sequence)
        elif sequence.pending:
            self.idle.pop(sequence.id, None)
            self.ready[sequence.id] = sequence
        else:
            self.ready.pop(sequence.id, None)
            self.idle[sequence.id] = sequence
            self.idle.move_to_end(sequence.id)

    def release(self, sequence: Sequence[L]) -> None:
        """It has no slot any more, and waits for none."""
        if sequence.slot != NO_SLOT:
            heapq.heappush(self._free, sequence.slot)
            sequence.slot = NO_SLOT
        self.waiting.pop(sequence.id, None)
        self.ready.pop(sequence.id, None)
        self.idle.pop(sequence.id, None)

    def fill(self) -> None:
        """Give free slots to those that wait."""
        while self._free and self.waiting:
            _, sequence = self.waiting.popitem(last=False)
            sequence.slot = heapq.heappop(self._free)
            self.place(sequence)
