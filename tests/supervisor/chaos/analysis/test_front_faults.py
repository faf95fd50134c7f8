"""What the checker says of the gRPC front: its death may break calls over gRPC, and nothing over HTTP."""

from __future__ import annotations

from dataclasses import replace

from chaos_tale import tale
from mmsup.supervisor.chaos.analysis.checker import check
from mmsup.supervisor.chaos.observe.history import (
    FaultFinished,
    FaultInjected,
    Invoke,
    Record,
    RequestOutcome,
    ServedCounts,
    ServerEvent,
)


def told(via: str, *more: Record, kind: str = "reset") -> list[str]:
    """The rules that are broken if a front is killed at 12 s while a request to `good` breaks off."""
    records = [
        *(replace(each, success=dict(each.success)) if isinstance(each, ServedCounts) else each for each in tale()),
        Invoke(11.9, 90, "good", 11.9, 8, via=via),
        FaultInjected(12.0, 2, "kill_front", ""),
        ServerEvent(12.1, {"event": "grpc_front_exit"}),
        RequestOutcome(12.02, 90, kind, code="" if kind == "reset" else "worker_crashed"),
        FaultFinished(12.5, 2),
        *more,
    ]
    return [each.rule for each in check(records)]


def test_the_death_of_a_front_may_break_calls_over_grpc_and_no_others() -> None:
    assert told("grpc") == []
    assert told("") == ["healthy"]
    assert told("grpc", kind="error") == ["healthy"]


def test_a_front_that_ends_once_more_is_found() -> None:
    assert told("grpc", ServerEvent(15.0, {"event": "grpc_front_exit"})) == ["house"]
