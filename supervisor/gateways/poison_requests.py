"""The requests that ended workers, as the brain knows them: what any gateway found, told to all and to the next brain.

Gateways apply the rule (ipc/poison_policy.py) to what they see and say so; the brain applies it to what all of them
say. A list is of one content of its model: when another one is in force, it is dropped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from mmsup.ipc.failpoints import failpoint
from mmsup.ipc.messages.gateway_control import AddPoisonEntries, PoisonSuspected, RemovePoisonEntry, SuspectCleared
from mmsup.ipc.poison_policy import PoisonEntry, PoisonList
from mmsup.supervisor.observability.event_log import EventLog
from mmsup.supervisor.state.checkpoint import PoisonCaseRecord, PoisonListRecord

CHECKPOINT_LIMIT: Final = 256
"""Blocked requests that the next brain is told of, of all models; all that it hears must fit into one message."""


class PoisonRegistry:
    """The lists of all models."""

    def __init__(self, journal: EventLog, say: Callable[[object], None], changed: Callable[[], None]) -> None:
        """`say`: to all gateways. `changed`: what is to be remembered is not as it was."""
        self._journal = journal
        self._broadcast = say
        self._changed = changed
        self._policies: dict[str, PoisonList] = {}
        self._revision_ids: dict[str, str] = {}
        """Of which content of its model a list is."""

    # What gateways say.

    def add_suspects(self, message: PoisonSuspected, mark: str) -> None:
        """A worker ended with these in its run; `mark`: the content of the model that it served."""
        name, now_s = message.name, time.monotonic()
        if self._revision_ids.get(name, mark) != mark:
            self._drop(name)
        self._revision_ids[name] = mark
        suspects = self._policies.setdefault(name, PoisonList())
        before = {each.fingerprint for each in suspects.entries() if each.blocked}
        for each in message.entries:
            suspects.worker_exited((each.fingerprint,), each.version, ran_alone=message.ran_alone, now_s=now_s)
        suspects.merge(message.entries)
        found = [case for each in message.entries if (case := suspects.find(each.fingerprint, now_s))]
        self._broadcast(AddPoisonEntries(name, tuple(found)))
        failpoint("brain.suspected")
        fresh = [each for each in found if each.blocked and each.fingerprint not in before]
        for case in fresh:
            self._record(message, case)
        if fresh:
            self._changed()

    def _record(self, message: PoisonSuspected, case: PoisonEntry) -> None:
        text = (
            f"a request ended its worker {case.deaths} times, the last time alone; the same inputs to version"
            f" {case.version} are refused for {case.until_s - time.monotonic():.0f} s"
        )
        self._journal.record(
            "request_quarantined",
            text,
            model=message.name,
            instance=message.instance,
            generation=message.generation,
            version=case.version,
            fingerprint=case.fingerprint.hex(),
            deaths=case.deaths,
        )

    def clear_suspect(self, message: SuspectCleared) -> None:
        """A suspect ran alone, and its worker lives."""
        suspects = self._policies.get(message.name)
        if suspects is not None and suspects.clear_suspect(message.fingerprint):
            self._broadcast(RemovePoisonEntry(message.name, message.fingerprint))
            self._drop_if_empty(message.name)

    # What becomes of lists.

    def drop_outdated(self, marks: Mapping[str, str]) -> None:
        """The contents of models that are in force now: the lists of others are dropped."""
        for name in [each for each, mark in self._revision_ids.items() if marks.get(each, mark) != mark]:
            self._drop(name)
            self._journal.record("quarantine_cleared", "another content of the model is in force", model=name)

    def clear(self, name: str) -> int:
        """Somebody wants a model's list, or all of them (no name), forgotten; how many requests that frees."""
        count = 0
        for each in [name] if name else list(self._policies):
            freed = sum(case.blocked for case in self._valid_entries(each))
            count += freed
            if each in self._policies:
                self._drop(each)
                self._journal.record("quarantine_cleared", f"cleared by hand: {freed} blocked", model=each)
        return count

    def has_list(self, name: str) -> bool:
        """Whether a model has a list."""
        return name in self._policies

    def _drop(self, name: str) -> None:
        del self._policies[name], self._revision_ids[name]
        self._broadcast(RemovePoisonEntry(name, b""))
        failpoint("brain.pardoned")
        self._changed()

    def _valid_entries(self, name: str) -> tuple[PoisonEntry, ...]:
        """The cases of a model that still hold."""
        if name in self._policies:
            self._policies[name].expire(time.monotonic())
            self._drop_if_empty(name)
        return self._policies[name].entries() if name in self._policies else ()

    def _drop_if_empty(self, name: str) -> None:
        if not self._policies[name]:
            del self._policies[name], self._revision_ids[name]

    # For others.

    def messages(self) -> list[AddPoisonEntries]:
        """All of them, for a gateway that knows nothing yet."""
        return [AddPoisonEntries(name, cases) for name in list(self._policies) if (cases := self._valid_entries(name))]

    def rows(self, name: str = "") -> list[dict[str, Any]]:  # JSON
        """For people: of one model or all, the blocked first."""
        rows = [row for each in sorted(self._policies) if name in ("", each) for row in self._rows_of(each)]
        return sorted(rows, key=lambda row: row["state"])

    def _rows_of(self, name: str) -> Iterator[dict[str, Any]]:  # JSON
        now_s = time.monotonic()
        for case in self._valid_entries(name):
            yield {
                "model": name,
                "version": case.version,
                "fingerprint": case.fingerprint.hex(),
                "state": "blocked" if case.blocked else "suspect",
                "deaths": case.deaths,
                "left_s": round(case.until_s - now_s, 1),
            }

    def records(self) -> tuple[PoisonListRecord, ...]:
        """What is blocked, to be remembered. Suspicions the gateways remember; with these the next death says more."""
        left, notes = CHECKPOINT_LIMIT, list[PoisonListRecord]()
        for name, suspects in self._policies.items():
            blocked = [each for each in suspects.entries() if each.blocked][:left]
            left -= len(blocked)
            if blocked:
                cases = [
                    PoisonCaseRecord(each.fingerprint.hex(), each.version, each.deaths, each.until_s)
                    for each in blocked
                ]
                notes.append(PoisonListRecord(name, self._revision_ids[name], tuple(cases)))
        return tuple(notes)

    def restore(self, notes: tuple[PoisonListRecord, ...]) -> None:
        """What the brain before us had blocked."""
        for note in notes:
            self._revision_ids[note.name] = note.revision_id
            self._policies[note.name] = suspects = PoisonList()
            suspects.merge(
                PoisonEntry(
                    bytes.fromhex(each.fingerprint), each.version, each.deaths, blocked=True, until_s=each.until_s
                )
                for each in note.cases
            )
