"""The statistics of clients, from a history written by hand."""

from __future__ import annotations

import pytest
from client_view import ClientView, client_view

from mmsup.supervisor.chaos.analysis.timeline import timeline_of
from mmsup.supervisor.chaos.observe.history import (
    FaultFinished,
    FaultInjected,
    Invoke,
    Record,
    RequestOutcome,
    RunStarted,
    ServerRestarted,
)

BEGAN = RunStarted(1, 30.0, {"a": "healthy", "b": "crashy"}, "a machine", "a server", "", 0.0, 5.0, own_codes=False)


def request(number: int, model: str, t: float, kind: str = "right", took_s: float = 0.1) -> list[Record]:
    return [Invoke(t, number, model, t, 8), RequestOutcome(t + took_s, number, kind)]


def fault(t: float, kind: str = "reset", told_s: float = 0.1, name: str = "segv") -> list[Record]:
    """Fault 1, injected into `b`."""
    return [
        FaultInjected(t, 1, name, "b"),
        Invoke(t, 50, "b", t, 16, 1),
        RequestOutcome(t + told_s, 50, kind),
        FaultFinished(t + told_s, 1),
    ]


def seen(*records: list[Record]) -> ClientView:
    return client_view(timeline_of([BEGAN, *(each for group in records for each in group)]))


def test_a_run_without_faults() -> None:
    found = seen(request(1, "a", 2.0), request(2, "b", 2.0), request(3, "a", 6.0, took_s=0.3))
    assert (found.sent, found.failed, found.wrong, found.unexplained, found.never, found.ended) == (2, 0, 0, 0, 0, 0)
    assert found.before.p99 == pytest.approx(0.1)
    assert found.under.p99 == pytest.approx(0.3)
    assert found.faults == {}


def test_a_model_has_recovered_when_it_answers_a_request_sent_after_the_outcome_of_the_fault() -> None:
    early: list[Record] = [
        Invoke(9.99, 2, "b", 9.99, 8),
        RequestOutcome(10.2, 2, "right"),
    ]  # was queued before the fault's request
    found = seen(fault(10.0), early, request(3, "b", 10.3, "error"), request(4, "b", 11.0), request(5, "a", 10.1))
    assert found.back.worst == pytest.approx(1.1)
    assert (found.never, found.unexplained, found.failed) == (0, 0, 0)
    assert found.faults["segv"].told_s == [pytest.approx(0.1)]


def test_a_fault_request_without_an_answer_is_in_effect_after_a_moment() -> None:
    found = seen(fault(10.0, "timeout", 15.0, "hang"), request(2, "b", 10.2, "timeout", 15.0), request(3, "b", 12.0))
    assert found.back.worst == pytest.approx(2.1)
    assert found.faults["hang"].untold == 1


def test_a_model_that_serves_again_only_after_a_restart_has_not_recovered() -> None:
    restarted: list[Record] = [ServerRestarted(20.0, 22.0, "a model stayed away")]
    found = seen(fault(10.0), request(2, "b", 12.0, "reset"), restarted, request(3, "b", 23.0))
    assert (found.never, found.back.count, found.restarted, found.ended) == (1, 0, 1, 0)
    assert found.unexplained == 0


@pytest.mark.parametrize(("why", "failed"), [("a model stayed away", 1), ("it had ended", 3)])
def test_failures_during_a_restart_are_counted_separately(why: str, failed: int) -> None:
    restarted: list[Record] = [ServerRestarted(20.0, 22.0, why)]
    found = seen(
        fault(10.0),
        request(1, "a", 15.0, "timeout", 10.0),  # it hung before the restart
        request(2, "a", 19.9, "reset", 0.2),
        request(3, "a", 21.0, "refused", 0.0),
        restarted,
    )
    assert (found.failed, found.failed_restarting) == (failed, 3 - failed)
    assert found.faults["segv"].failed_healthy == failed


def test_failures_between_faults_and_wrong_bytes_are_counted() -> None:
    found = seen(
        request(1, "b", 3.0, "error"),
        fault(10.0),
        request(2, "b", 11.0),
        request(3, "b", 14.0, "error"),
        request(4, "a", 3.0, "wrong"),
    )
    assert (found.unexplained, found.wrong, found.failed) == (2, 1, 1)
