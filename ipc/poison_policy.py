"""Which requests are suspected of having ended their workers, and which are refused for it. Pure.

A request is known by its fingerprint, which is the same whenever the same inputs are sent to the same version.

    nothing    in a run when its worker ended                  suspect
    suspect    in a run with others when its worker ended      suspect
    suspect    the only one in a run when its worker ended     blocked
    suspect    ran alone, and its worker lives                 nothing
    either     EXPIRY_S have passed                            nothing

Whoever was in the run that ended is suspect, guilty or not; suspects run alone from then on. So the next death says who
it was, a batch costs one more death however large it was, and the innocent among its requests get their answers. What
is blocked has been in two such runs, and in the second nothing else was.

Gateways and brain keep the same lists: each applies the table to what it sees, and the graver word of two holds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

EXPIRY_S: Final = 600.0
"""How long a word against a request holds, from its last death on."""
ENTRIES_LIMIT: Final = 1024
"""Requests under suspicion, of one model; the oldest suspicion gives way to a new one."""
BLOCKED_LIMIT: Final = 64
"""Requests refused, of one model; as above."""
SUSPECT_CAUSES: Final = frozenset({"worker_crashed", "worker_sigbus", "worker_oom", "worker_hung", "gpu_fault"})
"""Ends of a worker that may be the doing of what it ran."""
RETRYABLE_CAUSES: Final = frozenset({"worker_crashed", "worker_sigbus", "gpu_fault"})
"""Of these, the ones after which it may be run once more: what took all memory, or hung, would do so again."""


@dataclass(frozen=True, slots=True)
class PoisonEntry:
    """What is known of one fingerprint."""

    fingerprint: bytes
    version: str
    deaths: int
    """Ends of workers that it was in the run of."""
    blocked: bool
    until_s: float
    """CLOCK_MONOTONIC, which is the same in all processes."""


class PoisonList:
    """The list of one model."""

    def __init__(self) -> None:
        self._entries: dict[bytes, PoisonEntry] = {}
        """The oldest first."""

    def __len__(self) -> int:
        return len(self._entries)

    def entries(self) -> tuple[PoisonEntry, ...]:
        """All of them."""
        return tuple(self._entries.values())

    def worker_exited(
        self, fingerprints: Iterable[bytes], version: str, *, ran_alone: bool, now_s: float
    ) -> list[PoisonEntry]:
        """A worker ended with these in its run, `alone` if that was one request; what is known of them now."""
        found: list[PoisonEntry] = []
        for each in fingerprints:
            known = self.find(each, now_s)
            deaths = known.deaths + 1 if known else 1
            is_blocked = known is not None and (known.blocked or ran_alone)
            found.append(PoisonEntry(each, version, deaths, is_blocked, now_s + EXPIRY_S))
        self.merge(found)
        return found

    def clear_suspect(self, fingerprint: bytes) -> bool:
        """It ran alone and its worker lives; whether that takes it from the list. What is blocked stays so."""
        case = self._entries.get(fingerprint)
        if case is None or case.blocked:
            return False
        del self._entries[fingerprint]
        return True

    def find(self, fingerprint: bytes, now_s: float) -> PoisonEntry | None:
        """What is known of this one."""
        case = self._entries.get(fingerprint)
        return case if case is not None and case.until_s > now_s else None

    def merge(self, cases: Iterable[PoisonEntry]) -> None:
        """Somebody says this of them: the graver word holds."""
        for case in cases:
            known = self._entries.pop(case.fingerprint, case)
            deaths, until_s = max(case.deaths, known.deaths), max(case.until_s, known.until_s)
            is_blocked = case.blocked or known.blocked
            self._entries[case.fingerprint] = replace(case, deaths=deaths, blocked=is_blocked, until_s=until_s)
        blocked = [each.fingerprint for each in self._entries.values() if each.blocked]
        for each in (*blocked[:-BLOCKED_LIMIT], *list(self._entries)[:-ENTRIES_LIMIT]):
            self._entries.pop(each, None)

    def expire(self, now_s: float) -> None:
        """Forget what no longer holds."""
        self._entries = {key: each for key, each in self._entries.items() if each.until_s > now_s}
