"""What the checker says of a model that dies while another one has called it, or as the step of an ensemble."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from chaos_tale import right
from mmsup.supervisor.chaos.analysis.checker import check
from mmsup.supervisor.chaos.observe.history import (
    FaultFinished,
    FaultInjected,
    Invoke,
    Record,
    RequestOutcome,
    RunStarted,
    ServedCounts,
    ServerEvent,
    WorkerDeath,
)

MODELS = {"calling_1": "calling", "ensemble_1": "ensemble", "called_1": "called"}
CALLER, OLD, NEW = 50, 100, 200
IN_STEP = "in ensemble 'ensemble_1', step 'called_1': its worker was killed"
IN_CALL = "model 'calling_1' called model 'called_1': its worker was killed"


def killed(fault: str, asked: str, code: str, text: str) -> list[Record]:
    """`called_1` is killed at 5 s while `asked` waits for it; a request to the ensemble fails with it."""
    event = {"event": "worker_exit", "model": "called_1", "pid": OLD, "cause": "signal SIGKILL", "next_delay_s": 0.0}
    return [
        RunStarted(1, 20.0, MODELS, "a machine", "a server", "mmsup chaos", 0.0, 2.0),
        ServedCounts(0.0, dict.fromkeys(MODELS, 0)),
        *right(1, "calling_1", 4.0, CALLER),
        *right(2, "called_1", 4.0, OLD),
        *right(3, "ensemble_1", 4.0),
        Invoke(4.8, 50, asked, 4.8, 16, 1),
        FaultInjected(5.0, 1, fault, "called_1"),
        Invoke(5.0, 51, "ensemble_1", 5.0, 8),
        WorkerDeath(5.02, "called_1", OLD),
        ServerEvent(5.03, event),
        RequestOutcome(5.03, 50, "error", 500, code, text=text),
        RequestOutcome(5.03, 51, "error", 503, "model_restarting", text=IN_STEP),
        ServerEvent(5.5, {"event": "worker_ready", "model": "called_1", "pid": NEW, "load_s": 0.1}),
        *right(4, "called_1", 5.6, NEW),
        FaultFinished(5.8, 1, code),
        *right(5, "calling_1", 6.0, CALLER),
        ServedCounts(20.0, {"calling_1": 4, "ensemble_1": 1, "called_1": 6}),  # steps and calls among them
    ]


CALLED = killed("kill_called", "calling_1", "inference_failed", IN_CALL)
STEP = killed("kill_step", "ensemble_1", "worker_crashed", IN_STEP)


def changed(records: list[Record], number: int, **to: Any) -> list[Record]:  # any field
    """The outcome of that request, changed."""
    return [replace(each, **to) if isinstance(each, RequestOutcome) and each.id == number else each for each in records]


@pytest.mark.parametrize("records", [CALLED, STEP], ids=["called", "step"])
def test_one_error_that_names_who_died_is_in_order(records: list[Record]) -> None:
    assert check(records) == []


@pytest.mark.parametrize(
    ("records", "rule", "text"),
    [
        (changed(CALLED, 50, text="something failed"), "harm", "it does not name called_1"),
        (changed(CALLED, 50, code="worker_crashed"), "harm", "expected inference_failed or right"),
        (changed(STEP, 50, text="in ensemble 'ensemble_1'"), "harm", "it does not name called_1"),
        (
            changed(STEP, 51, text="in ensemble 'ensemble_1', step 'calling_1': it failed"),
            "explained",
            "without a fault",
        ),
        (changed(STEP, 51, code="inference_failed"), "explained", "without a fault"),
        ([*CALLED, WorkerDeath(5.05, "calling_1", CALLER)], "death", "a worker of calling_1 died"),
        ([*STEP, *right(6, "ensemble_1", 7.0)], "counted", "ensemble_1: the server counted 1 served"),
        ([*STEP, *(each for at in range(60, 65) for each in right(at, "called_1", 7.0, NEW))], "counted", "called_1"),
    ],
)
def test_each_violation_is_found(records: list[Record], rule: str, text: str) -> None:
    (finding, *_) = [each for each in check(records) if each.rule == rule]
    assert text in str(finding)
