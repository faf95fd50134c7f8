"""The ledger of one link: which requests are at the worker, and what each holds of the arena.

Pure but for whom it tells. Every entry ends exactly once: by the worker's reply, or by the end of the life. A caller
who leaves, or whose deadline passes, hears no more of it; the entry stays, since the worker may still touch the slots.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass

from mmsup.gateway.dispatch.reply_validation import Checked
from mmsup.ipc.errors import ServerError
from mmsup.ipc.memory.arena import Slot
from mmsup.ipc.messages.data import Infer, Place, Reply

_ID_BITS = 63


class LifeEnded(Exception):  # noqa: N818 - what happened to the worker; whose fault it was, the verdict says
    """The worker's life ended with this request in it.

    `begun`: it may have been executing. `running`: it was in the run that was going on. `alone`: nothing else was.
    """

    def __init__(self, *, begun: bool, running: bool = False, alone: bool = False) -> None:
        super().__init__("the worker's life ended")
        self.begun = begun
        self.running = running
        self.alone = alone


@dataclass(frozen=True, slots=True)
class Lost:
    """An entry that ended with the life. `begun`: it may have been executing; `running`: it was in the last run."""

    entry: Entry
    begun: bool
    running: bool = False


Said = Reply | LifeEnded | ServerError
"""What the owner of an entry hears: the worker's word, the end of that worker's life, or that its deadline passed."""


class Entry:
    """One request at the worker."""

    __slots__ = (
        "abandoned",
        "asked_again",
        "early",
        "name",
        "out",
        "request",
        "said",
        "sent_ns",
        "slots",
        "tell",
        "told",
    )

    def __init__(
        self,
        request: Infer,
        slots: list[Slot],
        tell: Callable[[Said], None],
        out: Slot | None = None,
        name: str = "",
    ) -> None:
        self.request = request
        self.slots = slots
        """In-slots, given back at the reply."""
        self.tell = tell
        """Called from within the link, at most once for each thing asked: the request, then each larger grant."""
        self.out = out
        self.name = name
        """The client's own id of it, if it gave one."""
        self.sent_ns = 0
        """When it went out."""
        self.told = False
        """Its owner has heard something, and has asked for nothing since."""
        self.asked_again = 0
        """How often the worker said that its grant was too small."""
        self.early: Reply | None = None
        """The outcome, if it came while a larger grant was being made."""
        self.said: Checked | None = None
        """What the words of its result say, once that has come."""
        self.abandoned = False
        """Nobody waits for the answer any more; the worker has been told."""

    def bytes_of(self, place: Place) -> memoryview:
        """What an output of its result is, in memory that is valid until the out-slot is given back."""
        if not isinstance(place, tuple):
            return memoryview(place)
        assert self.out is not None, "distrust.py lets no other reply through"
        _, offset, size = place
        start = offset - self.out.offset
        return self.out.view[start : start + size]


class Ledger:
    """Entries by id, oldest first. Ids rise from a random start: an answer from elsewhere meets no question."""

    def __init__(self) -> None:
        self.entries: dict[int, Entry] = {}
        self._last_id = random.getrandbits(_ID_BITS - 1) + 1

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries.values())

    def next_id(self) -> int:
        """A fresh id, larger than all before."""
        self._last_id += 1
        return self._last_id

    def add(self, entry: Entry) -> None:
        """A request goes out."""
        self.entries[entry.request.id] = entry

    def end(self, begun: Set[int], running: Set[int] = frozenset()) -> list[Lost]:
        """The life is over: settle all and name them, oldest first. `begun`: ids of those that executed last;
        `running`: of the run that was going on, of other gateways too. One that was asked a larger grant for ran
        before, however long ago."""
        entries, self.entries = self.entries, {}
        ran = {number for number, entry in entries.items() if number in begun or entry.asked_again}
        is_alone = len(running or ran) == 1
        for number, entry in entries.items():
            if not entry.told:  # told: abandoned, or its owner is about to grant and will see the end
                entry.told = True
                entry.tell(LifeEnded(begun=number in ran, running=number in running, alone=is_alone))
        return [Lost(entry, number in ran, number in running) for number, entry in entries.items()]
