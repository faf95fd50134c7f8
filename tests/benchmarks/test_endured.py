"""What a server endured, told by a history made by hand."""

from __future__ import annotations

import pytest
from endured import ClientView, client_view

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


def asked(number: int, model: str, t: float, kind: str = "right", took_s: float = 0.1) -> list[Record]:
    return [Invoke(t, number, model, t, 8), RequestOutcome(t + took_s, number, kind)]


def hurt(t: float, kind: str = "reset", told_s: float = 0.1, fault: str = "segv") -> list[Record]:
    """Fault 1, upon `b`."""
    return [
        FaultInjected(t, 1, fault, "b"),
        Invoke(t, 50, "b", t, 16, 1),
        RequestOutcome(t + told_s, 50, kind),
        FaultFinished(t + told_s, 1),
    ]


def seen(*records: list[Record]) -> ClientView:
    return client_view(timeline_of([BEGAN, *(each for group in records for each in group)]))


def test_a_server_that_nothing_befell() -> None:
    found = seen(asked(1, "a", 2.0), asked(2, "b", 2.0), asked(3, "a", 6.0, took_s=0.3))
    assert (found.sent, found.failed, found.wrong, found.unexplained, found.never, found.ended) == (2, 0, 0, 0, 0, 0)
    assert found.before.p99 == pytest.approx(0.1)
    assert found.under.p99 == pytest.approx(0.3)
    assert found.faults == {}


def test_a_model_is_back_when_it_answers_what_was_sent_after_the_harm_was_answered() -> None:
    early: list[Record] = [
        Invoke(9.99, 2, "b", 9.99, 8),
        RequestOutcome(10.2, 2, "right"),
    ]  # was before the harm in the queue
    found = seen(hurt(10.0), early, asked(3, "b", 10.3, "error"), asked(4, "b", 11.0), asked(5, "a", 10.1))
    assert found.back.worst == pytest.approx(1.1)
    assert (found.never, found.unexplained, found.failed) == (0, 0, 0)
    assert found.faults["segv"].told_s == [pytest.approx(0.1)]


def test_a_harm_that_is_not_answered_is_at_work_after_a_moment() -> None:
    found = seen(hurt(10.0, "timeout", 15.0, "hang"), asked(2, "b", 10.2, "timeout", 15.0), asked(3, "b", 12.0))
    assert found.back.worst == pytest.approx(2.1)
    assert found.faults["hang"].untold == 1


def test_a_model_that_came_back_only_with_its_server_never_came_back() -> None:
    restarted: list[Record] = [ServerRestarted(20.0, 22.0, "a model stayed away")]
    found = seen(hurt(10.0), asked(2, "b", 12.0, "reset"), restarted, asked(3, "b", 23.0))
    assert (found.never, found.back.count, found.restarted, found.ended) == (1, 0, 1, 0)
    assert found.unexplained == 0


@pytest.mark.parametrize(("why", "failed"), [("a model stayed away", 1), ("it had ended", 3)])
def test_what_failed_while_a_server_was_started_again_by_hand_stands_apart(why: str, failed: int) -> None:
    restarted: list[Record] = [ServerRestarted(20.0, 22.0, why)]
    found = seen(
        hurt(10.0),
        asked(1, "a", 15.0, "timeout", 10.0),  # it hung before anybody did anything
        asked(2, "a", 19.9, "reset", 0.2),
        asked(3, "a", 21.0, "refused", 0.0),
        restarted,
    )
    assert (found.failed, found.failed_restarting) == (failed, 3 - failed)
    assert found.faults["segv"].failed_healthy == failed


def test_failures_between_faults_and_wrong_bytes_are_counted() -> None:
    found = seen(
        asked(1, "b", 3.0, "error"),
        hurt(10.0),
        asked(2, "b", 11.0),
        asked(3, "b", 14.0, "error"),
        asked(4, "a", 3.0, "wrong"),
    )
    assert (found.unexplained, found.wrong, found.failed) == (2, 1, 1)
