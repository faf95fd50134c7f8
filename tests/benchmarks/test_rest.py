"""A server is measured when it is at rest: all its processes have come up and none of them uses CPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import server
import tree
from drivers.mosec import Mosec
from drivers.peer import ServerPlace
from server import Server


class Settling(Mosec):
    """Its last process comes up after some questions."""

    def __init__(self, questions: int) -> None:
        self.left = questions

    def is_settled(self, _place: ServerPlace) -> bool:
        self.left -= 1
        return self.left < 0


def waiting(monkeypatch: pytest.MonkeyPatch, shares: list[float], questions: int = 0) -> tuple[Server, Iterator[float]]:
    """A server that uses these shares of a core, one after the other, and those that were not asked for."""
    left = iter(shares)
    monkeypatch.setattr(server, "_used_share", lambda: next(left))
    made = Server.__new__(Server)
    made._peer, made._place = Settling(questions), None  # type: ignore[assignment] # no place is asked for
    return made, left


def test_a_server_is_waited_for_until_it_uses_no_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    one, left = waiting(monkeypatch, [0.9, 0.2, 0.01, 0.5])
    assert one.wait_until_at_rest() == ""
    assert list(left) == [0.5]


def test_a_process_that_is_still_to_come_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    one, left = waiting(monkeypatch, [0.0, 0.0, 0.7, 0.0, 0.5], questions=2)
    assert one.wait_until_at_rest() == ""
    assert list(left) == [0.5]


def test_a_server_that_never_rests_is_measured_and_the_report_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "REST_S", 0.0)
    one, _ = waiting(monkeypatch, [0.42])
    assert one.wait_until_at_rest() == "not at rest: 42% of a core without a request"


def test_what_processes_use_counts_from_their_start() -> None:
    before = {1: tree.ProcessCpu("old", 1.0, 2.0), 2: tree.ProcessCpu("gone", 5.0, 5.0)}
    after = {1: tree.ProcessCpu("old", 1.25, 2.25), 3: tree.ProcessCpu("new", 0.5, 0.0)}
    assert tree.used_s(before, after) == pytest.approx(1.0)
