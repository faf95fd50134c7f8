"""The ledger of one link: which requests are at the worker, and what each holds of the arena.

Pure but for whom it tells. Every entry ends exactly once: by the worker's reply, or by the end of the life. A caller
who leaves, or whose deadline passes, hears no more of it; the entry stays, since the worker may still touch the slots.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass

from mmsup.gateway.dispatch.reply_validation import ValidatedSignature
from mmsup.ipc.errors import ServerError
from mmsup.ipc.memory.arena import Slot
from mmsup.ipc.messages.data import Infer, InferReply, TensorLocation

_ID_BITS = 63


class WorkerExited(Exception):  # noqa: N818 - what happened to the worker; whose fault it was, the verdict says
    """The worker's life ended with this request in it.

    `begun`: it may have been executing. `running`: it was in the run that was going on. `alone`: nothing else was.
    """

    def __init__(self, *, begun: bool, running: bool = False, alone: bool = False) -> None:
        super().__init__("the worker's life ended")
        self.started = begun
        self.executing = running
        self.alone = alone


@dataclass(frozen=True, slots=True)
class LostRequest:
    """An entry that ended with the life. `begun`: it may have been executing; `running`: it was in the last run."""

    request: InFlightRequest
    started: bool
    executing: bool = False


RequestEvent = InferReply | WorkerExited | ServerError
"""What the owner of an entry hears: the worker's word, the end of that worker's life, or that its deadline passed."""


class InFlightRequest:
    """One request at the worker."""

    __slots__ = (
        "abandoned",
        "client_id",
        "early_reply",
        "input_slots",
        "larger_grants",
        "message",
        "notified",
        "on_event",
        "output_slot",
        "sent_ns",
        "signature",
    )

    def __init__(
        self,
        request: Infer,
        slots: list[Slot],
        tell: Callable[[RequestEvent], None],
        out: Slot | None = None,
        name: str = "",
    ) -> None:
        self.message = request
        self.input_slots = slots
        """In-slots, given back at the reply."""
        self.on_event = tell
        """Called from within the link, at most once for each thing asked: the request, then each larger grant."""
        self.output_slot = out
        self.client_id = name
        """The client's own id of it, if it gave one."""
        self.sent_ns = 0
        """When it went out."""
        self.notified = False
        """Its owner has heard something, and has asked for nothing since."""
        self.larger_grants = 0
        """How often the worker said that its grant was too small."""
        self.early_reply: InferReply | None = None
        """The outcome, if it came while a larger grant was being made."""
        self.signature: ValidatedSignature | None = None
        """What the words of its result say, once that has come."""
        self.abandoned = False
        """Nobody waits for the answer any more; the worker has been told."""

    def output_bytes(self, place: TensorLocation) -> memoryview:
        """What an output of its result is, in memory that is valid until the out-slot is given back."""
        if not isinstance(place, tuple):
            return memoryview(place)
        assert self.output_slot is not None, "distrust.py lets no other reply through"
        _, offset, size = place
        start = offset - self.output_slot.offset
        return self.output_slot.view[start : start + size]


class InFlightTable:
    """Entries by id, oldest first. Ids rise from a random start: an answer from elsewhere meets no question."""

    def __init__(self) -> None:
        self.entries: dict[int, InFlightRequest] = {}
        self._last_id = random.getrandbits(_ID_BITS - 1) + 1

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[InFlightRequest]:
        return iter(self.entries.values())

    def next_id(self) -> int:
        """A fresh id, larger than all before."""
        self._last_id += 1
        return self._last_id

    def add(self, entry: InFlightRequest) -> None:
        """A request goes out."""
        self.entries[entry.message.id] = entry

    def close(self, begun: Set[int], running: Set[int] = frozenset()) -> list[LostRequest]:
        """The life is over: settle all and name them, oldest first. `begun`: ids of those that executed last;
        `running`: of the run that was going on, of other gateways too. One that was asked a larger grant for ran
        before, however long ago."""
        entries, self.entries = self.entries, {}
        ran = {number for number, entry in entries.items() if number in begun or entry.larger_grants}
        is_alone = len(running or ran) == 1
        for number, entry in entries.items():
            if not entry.notified:  # told: abandoned, or its owner is about to grant and will see the end
                entry.notified = True
                entry.on_event(WorkerExited(begun=number in ran, running=number in running, alone=is_alone))
        return [LostRequest(entry, number in ran, number in running) for number, entry in entries.items()]
