"""A history is in its file as it was recorded."""

from __future__ import annotations

import json
from pathlib import Path

from mmsup.supervisor.chaos.observe import history
from mmsup.supervisor.chaos.observe.history import (
    History,
    Invoke,
    LeakReport,
    Record,
    RequestOutcome,
    RunStarted,
    ServerEvent,
    WorkerDeath,
)

EACH: list[Record] = [
    RunStarted(7, 60.0, {"a": "healthy"}, "a machine", "a server", "mmsup chaos", 1.0, 10.0),
    Invoke(1.5, 1, "a", 1.4, 8, 3),
    RequestOutcome(1.6, 1, "right", 200, pid=12, revision=2),
    history.FaultInjected(2.0, 3, "segv", "a", done=False, note="gone"),
    history.FaultFinished(2.5, 3, "worker_crashed"),
    WorkerDeath(2.1, "a", 12),
    ServerEvent(2.2, {"event": "worker_exit", "pid": 12}),
    history.RevisionInForce(2.6, "a", 3),
    history.ServedCounts(3.0, {"a": 1.0}),
    history.ServerRestarted(3.5, 3.9, "it had ended"),
    LeakReport(4.0, "after", ["I2 1 children were not reaped"], {"zombies": 1}),
]


def test_every_kind_of_record_survives_the_file(tmp_path: Path) -> None:
    made = History(tmp_path / "history.jsonl")
    for each in EACH:
        made.add(each)
    made.close()
    assert {type(each) for each in EACH} == set(history.RECORD_TYPES.values())
    with (tmp_path / "history.jsonl").open() as file:
        lines = [json.loads(line) for line in file]
    assert [history.RECORD_TYPES[each.pop("what")](**each) for each in lines] == EACH == made.records


def test_time_begins_with_the_run_and_does_not_go_back() -> None:
    made = History()
    first = made.now()
    assert 0.0 <= first <= made.now() < 5.0
