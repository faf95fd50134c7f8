from __future__ import annotations

import json
import os
import resource
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mmsup.supervisor.observability.event_log import EVENTS_KEPT, EventLog


def event_log(tmp_path: Path) -> EventLog:
    return EventLog(tmp_path / "events.jsonl", lambda: datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC))


def test_an_event_is_one_line_with_time_model_instance_and_text(tmp_path: Path) -> None:
    log = event_log(tmp_path)
    log.record("worker_exit", "died", model="bert", instance=7, generation=2, sig=9)
    log.close()
    line = (tmp_path / "events.jsonl").read_text()
    assert line.count("\n") == 1
    assert json.loads(line) == {
        "time": "2026-01-02T03:04:05.678Z",
        "event": "worker_exit",
        "model": "bert",
        "instance": 7,
        "generation": 2,
        "text": "died",
        "sig": 9,
    }


def test_recorded_events_are_read_back_from_the_file(tmp_path: Path) -> None:
    first = event_log(tmp_path)
    first.record("ready", "a")
    first.close()
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"event": "cut in the mid')
    second = event_log(tmp_path)
    assert [each["text"] for each in second.last()] == ["a"]
    second.record("ready", "b")
    second.record("ready", "c")
    second.close()
    assert [each["text"] for each in event_log(tmp_path).last()] == ["a", "b", "c"]


def test_a_partly_written_line_does_not_damage_the_next(tmp_path: Path) -> None:
    log = event_log(tmp_path)
    log.record("ready", "a")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))  # the kernel writes as far as that, as on a full disk
    try:
        log.record("ready", "b" * 200)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    log.record("ready", "c")
    log.close()
    assert [each["text"] for each in event_log(tmp_path).last()] == ["a", "c"]


def test_last_returns_the_newest_events_of_a_model_oldest_first(tmp_path: Path) -> None:
    log = event_log(tmp_path)
    for number in range(5):
        log.record("backoff", str(number), model="a" if number % 2 else "b")
    assert [each["text"] for each in log.last(2, "b")] == ["2", "4"]
    assert log.last(0) == []
    log.close()


def test_recent_returns_the_newest_events_of_one_instance(tmp_path: Path) -> None:
    log = event_log(tmp_path)
    for number in range(40):
        log.record("backoff", str(number), instance=number % 2)
    assert [each["text"] for each in log.recent(1)] == [str(number) for number in range(17, 40, 2)]
    log.close()


def test_memory_is_bounded(tmp_path: Path) -> None:
    log = event_log(tmp_path)
    for _ in range(EVENTS_KEPT + 10):
        log.record("backoff")
    assert len(log.last(EVENTS_KEPT * 2)) == EVENTS_KEPT
    log.close()


def test_a_subscriber_receives_events_until_it_unsubscribes(tmp_path: Path) -> None:
    log = event_log(tmp_path)
    received: list[str] = []
    stop = log.subscribe(lambda event: received.append(event["text"]))
    log.record("ready", "one")
    stop()
    log.record("ready", "two")
    log.close()
    assert received == ["one"]


def test_an_event_with_an_unknown_name_is_a_bug(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="'surprise' is not a known event"):
        event_log(tmp_path).record("surprise")


def test_lone_surrogates_in_a_text_are_escaped(tmp_path: Path) -> None:
    log = event_log(tmp_path)
    log.record("load_failed", "caf\udce9")
    log.close()
    assert len(event_log(tmp_path).last()) == 1


def test_a_damaged_file_of_events_is_said_and_grows_on(tmp_path: Path) -> None:
    damaged = b"\xff\n" * 3 + b"[" * 200_000 + b"\n"
    (tmp_path / "events.jsonl").write_bytes(damaged)
    log = event_log(tmp_path)
    assert log.problem.startswith("4 lines of events.jsonl are no events")
    log.record("ready", "a")
    log.close()
    assert (tmp_path / "events.jsonl").read_bytes().startswith(damaged)
    assert [each["text"] for each in event_log(tmp_path).last()] == ["a"]


def test_events_that_cannot_be_read_at_all_are_said(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").mkdir()
    assert event_log(tmp_path).problem == "events.jsonl cannot be read: Is a directory; earlier events are not shown"


def test_only_the_end_of_a_file_of_gigabytes_is_read(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = event_log(tmp_path)
    log.record("ready", "a")
    log.close()
    line = path.read_bytes()
    os.truncate(path, 3 << 30)
    with path.open("ab") as file:
        file.write(b"\n" + line)
    assert [each["text"] for each in event_log(tmp_path).last()] == ["a"]
