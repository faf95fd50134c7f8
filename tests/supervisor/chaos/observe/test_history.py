"""A history can be read back as it was written, also one that was cut off."""

from __future__ import annotations

from pathlib import Path

import pytest

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
    decode_records,
    encode_record,
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
        assert list(decode_records(file)) == EACH == made.records


def test_a_line_that_was_cut_off_ends_the_history_and_one_in_the_middle_is_an_error() -> None:
    lines = [encode_record(each) for each in EACH]
    assert list(decode_records(iter([*lines, lines[0][:15]]))) == EACH
    with pytest.raises(ValueError, match=r"line 1 column"):
        list(decode_records(iter([lines[0][:15] + "\n", *lines])))


def test_time_begins_with_the_run_and_does_not_go_back() -> None:
    made = History()
    first = made.now()
    assert 0.0 <= first <= made.now() < 5.0
