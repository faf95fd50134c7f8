"""The controller's poison list of each model: merged from what all gateways report, sent to all of them and saved.

Gateways apply the rule (ipc/poison_policy.py) to what they see and report it; the controller applies it to what all of
them report. A list belongs to one revision of its model and is dropped when another one becomes active.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mmsup.ipc.failpoints import failpoint
from mmsup.ipc.messages.gateway_control import AddPoisonEntries, PoisonSuspected, RemovePoisonEntry, SuspectCleared
from mmsup.ipc.poison_policy import PoisonEntry, PoisonList
from mmsup.supervisor.observability.event_log import EventLog


@dataclass(frozen=True, slots=True)
class PoisonRecord:
    """The blocked requests of one model in the controller's checkpoint."""

    name: str
    content_id: str
    """Of the revision that they belong to."""
    entries: tuple[PoisonEntry, ...]


def poison_key(name: str) -> str:
    """Of a model's PoisonRecord in the checkpoint."""
    return f"poison/{name}"


class PoisonRegistry:
    def __init__(
        self, event_log: EventLog, broadcast: Callable[[object], None], on_change: Callable[[str], None]
    ) -> None:
        """`broadcast`: to all gateways. `on_change` gets the name of a model whose record has changed."""
        self._event_log = event_log
        self._broadcast = broadcast
        self._on_change = on_change
        self._lists: dict[str, PoisonList] = {}
        self._content_ids: dict[str, str] = {}
        """Of the revision that a list belongs to."""

    def add_suspects(self, message: PoisonSuspected, content_id: str) -> None:
        """A worker of the revision `content_id` has exited while it ran these requests."""
        name, now_s = message.name, time.monotonic()
        if self._content_ids.get(name, content_id) != content_id:
            self._drop(name)
        self._content_ids[name] = content_id
        entries = self._lists.setdefault(name, PoisonList())
        before = {each.fingerprint for each in entries.entries() if each.blocked}
        for each in message.entries:
            entries.worker_exited((each.fingerprint,), each.version, ran_alone=message.ran_alone, now_s=now_s)
        entries.merge(message.entries)
        found = [entry for each in message.entries if (entry := entries.find(each.fingerprint, now_s))]
        self._broadcast(AddPoisonEntries(name, tuple(found)))
        failpoint("brain.suspected")
        blocked = [each for each in found if each.blocked and each.fingerprint not in before]
        for entry in blocked:
            self._record_blocked(message, entry)
        if blocked:
            self._on_change(name)

    def _record_blocked(self, message: PoisonSuspected, entry: PoisonEntry) -> None:
        text = (
            f"a request ended its worker {entry.deaths} times, the last time alone; the same inputs to version"
            f" {entry.version} are refused for {entry.until_s - time.monotonic():.0f} s"
        )
        self._event_log.record(
            "request_quarantined",
            text,
            model=message.name,
            instance=message.instance,
            generation=message.generation,
            version=entry.version,
            fingerprint=entry.fingerprint.hex(),
            deaths=entry.deaths,
        )

    def clear_suspect(self, message: SuspectCleared) -> None:
        entries = self._lists.get(message.name)
        if entries is not None and entries.clear_suspect(message.fingerprint):
            self._broadcast(RemovePoisonEntry(message.name, message.fingerprint))
            self._drop_if_empty(message.name)

    def drop_outdated(self, name: str, content_id: str) -> None:
        """The active revision of a model is this one: drop a list that belongs to another."""
        if self._content_ids.get(name, content_id) != content_id:
            self._drop(name)
            self._event_log.record("quarantine_cleared", "another content of the model is in force", model=name)

    def clear(self, name: str) -> int:
        """Drop the list of a model, or of all (no name); how many requests are not blocked any more."""
        count = 0
        for each in [name] if name else list(self._lists):
            freed = sum(entry.blocked for entry in self._valid_entries(each))
            count += freed
            if each in self._lists:
                self._drop(each)
                self._event_log.record("quarantine_cleared", f"cleared by hand: {freed} blocked", model=each)
        return count

    def has_list(self, name: str) -> bool:
        return name in self._lists

    def _drop(self, name: str) -> None:
        del self._lists[name], self._content_ids[name]
        self._broadcast(RemovePoisonEntry(name, b""))
        failpoint("brain.pardoned")
        self._on_change(name)

    def _valid_entries(self, name: str) -> tuple[PoisonEntry, ...]:
        if name in self._lists:
            self._lists[name].expire(time.monotonic())
            self._drop_if_empty(name)
        return self._lists[name].entries() if name in self._lists else ()

    def _drop_if_empty(self, name: str) -> None:
        if not self._lists[name]:
            del self._lists[name], self._content_ids[name]

    def messages(self) -> list[AddPoisonEntries]:
        names = list(self._lists)
        return [AddPoisonEntries(name, entries) for name in names if (entries := self._valid_entries(name))]

    def rows(self, name: str = "") -> list[dict[str, Any]]:  # JSON
        rows = [
            {
                "model": each,
                "version": entry.version,
                "fingerprint": entry.fingerprint.hex(),
                "state": "blocked" if entry.blocked else "suspect",
                "deaths": entry.deaths,
                "left_s": round(entry.until_s - time.monotonic(), 1),
            }
            for each in sorted(self._lists)
            if name in ("", each)
            for entry in self._valid_entries(each)
        ]
        return sorted(rows, key=lambda row: row["state"])

    def record(self, name: str) -> PoisonRecord | None:
        """What is blocked, for the next controller. Suspects the gateways know, and send them with the next exit."""
        entries = self._lists[name].entries() if name in self._lists else ()
        blocked = tuple(each for each in entries if each.blocked)
        return PoisonRecord(name, self._content_ids[name], blocked) if blocked else None

    def restore(self, records: tuple[PoisonRecord, ...]) -> None:
        for record in records:
            self._content_ids[record.name] = record.content_id
            entries = self._lists[record.name] = PoisonList()
            entries.merge(record.entries)
