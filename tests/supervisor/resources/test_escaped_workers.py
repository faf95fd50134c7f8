from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from mmsup.supervisor.instances.lifecycle_events import HangDetected, InstanceState, ProtocolViolated
from mmsup.supervisor.resources import escaped_workers
from mmsup.supervisor.resources.escaped_workers import EscapedWorkers


class Double:
    """An instance, with what a check sees of its worker."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.id = 3
        self.generation = 1
        self.is_in_group = True
        self.has_main_thread = True
        self.state = InstanceState.READY
        self.events: list[object] = []
        self.process = SimpleNamespace(pid=77, is_dead=False)
        self.worker = SimpleNamespace(group=SimpleNamespace(holds=lambda _: self.is_in_group))
        monkeypatch.setattr(escaped_workers, "has_lost_main_thread", lambda _: not self.has_main_thread)

    @property
    def worker_id(self) -> tuple[int, int]:
        return self.id, self.generation

    def apply(self, event: object) -> None:
        self.events.append(event)


def test_a_worker_that_is_outside_twice_in_a_row_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    escaped, instance = EscapedWorkers(), Double(monkeypatch)
    given = cast("Any", instance)
    instance.is_in_group = False
    escaped.check(given)
    assert instance.events == []  # it may be about to exit
    escaped.check(given)
    assert [type(each) for each in instance.events] == [ProtocolViolated]


def test_a_worker_that_exits_while_it_is_looked_at_is_not_blamed(monkeypatch: pytest.MonkeyPatch) -> None:
    escaped, instance = EscapedWorkers(), Double(monkeypatch)
    given = cast("Any", instance)
    instance.has_main_thread = False
    escaped.check(given)
    instance.process.is_dead = True
    escaped.check(given)
    instance.process.is_dead, instance.generation = False, 2  # its successor, looked at in the same moment of its end
    escaped.check(given)
    assert instance.events == []
    instance.generation = 3
    escaped.check(given)
    assert instance.events == []
    escaped.check(given)
    assert [type(each) for each in instance.events] == [HangDetected]
