"""At which worker a sequence is looked for, and begun: in an order that all gateways agree on. Pure.

Each worker has a score for each sequence (rendezvous hashing), by its instance, which stays the same when its process
is another one. So gateways need not tell each other, sequences spread over all workers, and a worker that comes or goes
changes the place of no sequence of the others.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Hashable, Iterable
from typing import Final, Protocol, TypeVar

from mmsup.ipc.paths import WorkerId

PLACES_LIMIT: Final = 65_536
"""Sequences of which a gateway remembers the worker. One that it has forgotten is looked for at all."""


class Placed(Protocol):
    @property
    def worker_id(self) -> WorkerId: ...


P = TypeVar("P", bound=Placed)


def ordered(links: Iterable[P], model: str, sequence: int | str) -> list[P]:
    """The worker with the highest score first."""
    key = f"{type(sequence).__name__}:{sequence}:{model}".encode("utf-8", "surrogatepass")
    return sorted(links, key=lambda each: _score(each.worker_id, key), reverse=True)


def _score(worker_id: WorkerId, key: bytes) -> bytes:
    return hashlib.blake2b(key, digest_size=8, salt=worker_id[0].to_bytes(16, "little", signed=True)).digest()


class Places:
    """Which worker had the last request of each sequence that came through this gateway."""

    def __init__(self, limit: int = PLACES_LIMIT) -> None:
        self._limit = limit
        self.began_s = time.monotonic()
        """Since when this gateway sees what becomes of workers."""
        self._workers: OrderedDict[Hashable, tuple[WorkerId, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._workers)

    def get(self, key: Hashable) -> WorkerId | None:
        found = self._workers.get(key)
        return found[0] if found is not None else None

    def silence_s(self, key: Hashable) -> float:
        """Since the last request of a sequence that came through this gateway; 0 of one that it does not know."""
        found = self._workers.get(key)
        return time.monotonic() - found[1] if found is not None else 0.0

    def put(self, key: Hashable, worker_id: WorkerId) -> None:
        self._workers[key] = worker_id, time.monotonic()
        self._workers.move_to_end(key)
        if len(self._workers) > self._limit:
            self._workers.popitem(last=False)

    def drop(self, key: Hashable) -> None:
        self._workers.pop(key, None)
