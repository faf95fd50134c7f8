"""Poison policy: which requests are suspected of killing their workers, and which are therefore refused. Pure.

A request is identified by its fingerprint, which is the same whenever the same inputs are sent to the same version.

    state       event                                                         next
    unknown     was executing when its worker exited                          suspect
    suspect     was executing, in a batch with others                         suspect
    suspect     was executing, alone in its batch                             blocked
    suspect     was executed alone, and the worker survived                   unknown
    any         EXPIRY_S have passed since its last worker exit               unknown

All requests of the batch become suspects; suspects are executed alone from then on. So the next exit identifies the
cause, a batch of any size costs one more worker, and the other requests of the batch are answered. A blocked request
was in two such batches and alone in the second.

Gateways and controller keep the same lists: each applies the table to what it sees, and on merging the stricter state
wins.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

EXPIRY_S: Final = 600.0
"""Seconds after the last worker exit."""
ENTRIES_LIMIT: Final = 1024
"""Most entries of one model; the oldest is removed for a new one."""
BLOCKED_LIMIT: Final = 64
"""Most blocked requests of one model; as above."""
SUSPECT_CAUSES: Final = frozenset({"worker_crashed", "worker_sigbus", "worker_oom", "gpu_oom", "gpu_fault"})
"""Causes of a worker exit that may be the fault of the request it executed. A hang is none: slow work, a lock, a
service that does not answer and a limit that is too short look the same, and no input should be forbidden for them."""
RETRYABLE_CAUSES: Final = frozenset({"worker_crashed", "worker_sigbus", "gpu_fault"})
"""Those after which the request may be executed once more; out of memory and a hang would repeat."""


@dataclass(frozen=True, slots=True)
class PoisonEntry:
    """The state of one fingerprint."""

    fingerprint: bytes
    version: str
    deaths: int
    """Worker exits while it was executing."""
    blocked: bool
    until_s: float
    """CLOCK_MONOTONIC, the same in all processes."""


class PoisonList:
    """The entries of one model."""

    def __init__(self) -> None:
        self._entries: dict[bytes, PoisonEntry] = {}
        """Oldest first."""

    def __len__(self) -> int:
        return len(self._entries)

    def entries(self) -> tuple[PoisonEntry, ...]:
        return tuple(self._entries.values())

    def worker_exited(
        self, fingerprints: Iterable[bytes], version: str, *, ran_alone: bool, now_s: float
    ) -> list[PoisonEntry]:
        """Update and return the entries of the requests that a worker was executing when it exited."""
        found: list[PoisonEntry] = []
        for each in fingerprints:
            known = self.find(each, now_s)
            deaths = known.deaths + 1 if known else 1
            is_blocked = known is not None and (known.blocked or ran_alone)
            found.append(PoisonEntry(each, version, deaths, is_blocked, now_s + EXPIRY_S))
        self.merge(found)
        return found

    def clear_suspect(self, fingerprint: bytes) -> bool:
        """It was executed alone and the worker survived: remove it unless it is blocked; whether it was removed."""
        entry = self._entries.get(fingerprint)
        if entry is None or entry.blocked:
            return False
        del self._entries[fingerprint]
        return True

    def find(self, fingerprint: bytes, now_s: float) -> PoisonEntry | None:
        entry = self._entries.get(fingerprint)
        return entry if entry is not None and entry.until_s > now_s else None

    def merge(self, entries: Iterable[PoisonEntry]) -> None:
        """Merge entries of another process: the stricter state wins."""
        for entry in entries:
            known = self._entries.pop(entry.fingerprint, entry)
            deaths, until_s = max(entry.deaths, known.deaths), max(entry.until_s, known.until_s)
            is_blocked = entry.blocked or known.blocked
            self._entries[entry.fingerprint] = replace(entry, deaths=deaths, blocked=is_blocked, until_s=until_s)
        blocked = [each.fingerprint for each in self._entries.values() if each.blocked]
        for each in (*blocked[:-BLOCKED_LIMIT], *list(self._entries)[:-ENTRIES_LIMIT]):
            self._entries.pop(each, None)

    def expire(self, now_s: float) -> None:
        self._entries = {key: each for key, each in self._entries.items() if each.until_s > now_s}
