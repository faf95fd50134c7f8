"""A live sequence, what it waits for, and what is kept for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Any, Final, Generic, TypeVar

from mmsup.ipc.messages.data import Infer
from mmsup.ipc.tensors.numpy_arrays import Array
from mmsup.worker.batching.priority_queue import QueuedRequest
from mmsup.worker.batching.request_signature import RequestSignature
from mmsup.worker.sequences.sequence_signature import SequenceId, SequenceStep

NO_SLOT: Final = -1
L = TypeVar("L", bound=Hashable)
"""The link to the gateway that sent a request."""


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
