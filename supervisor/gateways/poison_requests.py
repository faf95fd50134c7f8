"""The requests that ended workers, as the brain knows them: what any gateway found, told to all and to the next brain.

Gateways apply the rule (ipc/poison_policy.py) to what they see and say so; the brain applies it to what all of them
say. A list is of one content of its model: when another one is in force, it is dropped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from mmsup.ipc.failpoints import faultpoint
from mmsup.ipc.messages import gateway_control
from mmsup.ipc.poison_policy import Case, Suspects
from mmsup.supervisor.observability.event_log import Journal
from mmsup.supervisor.state.checkpoint import CaseNote, ListNote

REMEMBERED_LIMIT: Final = 256
"""Blocked requests that the next brain is told of, of all models; all that it hears must fit into one message."""


class Quarantine:
    """The lists of all models."""

    def __init__(self, journal: Journal, say: Callable[[object], None], changed: Callable[[], None]) -> None:
        """`say`: to all gateways. `changed`: what is to be remembered is not as it was."""
        self._journal = journal
        self._say = say
        self._changed = changed
        self._models: dict[str, Suspects] = {}
        self._marks: dict[str, str] = {}
        """Of which content of its model a list is."""

    # What gateways say.

    def suspected(self, message: gateway_control.Suspected, mark: str) -> None:
        """A worker ended with these in its run; `mark`: the content of the model that it served."""
        name, now_s = message.name, time.monotonic()
        if self._marks.get(name, mark) != mark:
            self._drop(name)
        self._marks[name] = mark
        suspects = self._models.setdefault(name, Suspects())
        before = {each.fingerprint for each in suspects.cases() if each.blocked}
        for each in message.cases:
            suspects.died((each.fingerprint,), each.version, alone=message.alone, now_s=now_s)
        suspects.add(message.cases)
        found = [case for each in message.cases if (case := suspects.find(each.fingerprint, now_s))]
        self._say(gateway_control.Quarantine(name, tuple(found)))
        faultpoint("brain.suspected")
        fresh = [each for each in found if each.blocked and each.fingerprint not in before]
        for case in fresh:
            self._record(message, case)
        if fresh:
            self._changed()

    def _record(self, message: gateway_control.Suspected, case: Case) -> None:
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

    def lived(self, message: gateway_control.Lived) -> None:
        """A suspect ran alone, and its worker lives."""
        suspects = self._models.get(message.name)
        if suspects is not None and suspects.lived(message.fingerprint):
            self._say(gateway_control.Pardon(message.name, message.fingerprint))
            self._tidy(message.name)

    # What becomes of lists.

    def compare(self, marks: Mapping[str, str]) -> None:
        """The contents of models that are in force now: the lists of others are dropped."""
        for name in [each for each, mark in self._marks.items() if marks.get(each, mark) != mark]:
            self._drop(name)
            self._journal.record("quarantine_cleared", "another content of the model is in force", model=name)

    def clear(self, name: str) -> int:
        """Somebody wants a model's list, or all of them (no name), forgotten; how many requests that frees."""
        count = 0
        for each in [name] if name else list(self._models):
            freed = sum(case.blocked for case in self._current(each))
            count += freed
            if each in self._models:
                self._drop(each)
                self._journal.record("quarantine_cleared", f"cleared by hand: {freed} blocked", model=each)
        return count

    def has(self, name: str) -> bool:
        """Whether a model has a list."""
        return name in self._models

    def _drop(self, name: str) -> None:
        del self._models[name], self._marks[name]
        self._say(gateway_control.Pardon(name, b""))
        faultpoint("brain.pardoned")
        self._changed()

    def _current(self, name: str) -> tuple[Case, ...]:
        """The cases of a model that still hold."""
        if name in self._models:
            self._models[name].expire(time.monotonic())
            self._tidy(name)
        return self._models[name].cases() if name in self._models else ()

    def _tidy(self, name: str) -> None:
        if not self._models[name]:
            del self._models[name], self._marks[name]

    # For others.

    def lists(self) -> list[gateway_control.Quarantine]:
        """All of them, for a gateway that knows nothing yet."""
        return [
            gateway_control.Quarantine(name, cases) for name in list(self._models) if (cases := self._current(name))
        ]

    def rows(self, name: str = "") -> list[dict[str, Any]]:  # JSON
        """For people: of one model or all, the blocked first."""
        rows = [row for each in sorted(self._models) if name in ("", each) for row in self._rows_of(each)]
        return sorted(rows, key=lambda row: row["state"])

    def _rows_of(self, name: str) -> Iterator[dict[str, Any]]:  # JSON
        now_s = time.monotonic()
        for case in self._current(name):
            yield {
                "model": name,
                "version": case.version,
                "fingerprint": case.fingerprint.hex(),
                "state": "blocked" if case.blocked else "suspect",
                "deaths": case.deaths,
                "left_s": round(case.until_s - now_s, 1),
            }

    def notes(self) -> tuple[ListNote, ...]:
        """What is blocked, to be remembered. Suspicions the gateways remember; with these the next death says more."""
        left, notes = REMEMBERED_LIMIT, list[ListNote]()
        for name, suspects in self._models.items():
            blocked = [each for each in suspects.cases() if each.blocked][:left]
            left -= len(blocked)
            if blocked:
                cases = [CaseNote(each.fingerprint.hex(), each.version, each.deaths, each.until_s) for each in blocked]
                notes.append(ListNote(name, self._marks[name], tuple(cases)))
        return tuple(notes)

    def restore(self, notes: tuple[ListNote, ...]) -> None:
        """What the brain before us had blocked."""
        for note in notes:
            self._marks[note.name] = note.mark
            self._models[note.name] = suspects = Suspects()
            suspects.add(
                Case(bytes.fromhex(each.fingerprint), each.version, each.deaths, blocked=True, until_s=each.until_s)
                for each in note.cases
            )
