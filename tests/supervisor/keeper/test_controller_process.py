"""When a controller is late: what it waited for a processor is not held against it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from mmsup.supervisor.keeper import controller_process
from mmsup.supervisor.keeper.controller_process import HEARTBEAT_TIMEOUT_S, MOST_EXTENSION_S, ControllerProcess


@pytest.mark.parametrize(
    ("share", "killed_after_s"),
    [
        (0.0, HEARTBEAT_TIMEOUT_S),  # stopped, or asleep for ever
        (0.5, 2 * HEARTBEAT_TIMEOUT_S),
        (1.0, HEARTBEAT_TIMEOUT_S + MOST_EXTENSION_S),
    ],
)
def test_a_late_controller_is_killed_when_it_has_had_its_time(
    monkeypatch: pytest.MonkeyPatch, share: float, killed_after_s: float
) -> None:
    """`share` of the time it waits in the run queue."""
    now_s = 0.0
    monkeypatch.setattr(controller_process, "queued_s", lambda _: share * now_s)
    late = ControllerProcess.__new__(ControllerProcess)
    late._process = cast("Any", SimpleNamespace(pid=77))
    late._failure, late._is_killed = "", False
    late._extended_s = late._queued_s = 0.0
    late.heartbeat_due_s = HEARTBEAT_TIMEOUT_S
    while not late.kill_reason(now_s):
        assert now_s < 100.0, "it is never killed"
        now_s = max(late.heartbeat_due_s, now_s + 0.01)
    assert now_s == pytest.approx(killed_after_s, abs=0.1)
    assert late.kill_reason(now_s) == "missed its heartbeats"
