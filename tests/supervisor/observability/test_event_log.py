from __future__ import annotations

import json
import resource
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mmsup.supervisor.observability.event_log import EVENTS_KEPT, EventLog


def journal(tmp_path: Path) -> EventLog:
    return EventLog(tmp_path / "events.jsonl", lambda: datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC))


def test_an_event_is_one_line_with_time_model_instance_and_text(tmp_path: Path) -> None:
    made = journal(tmp_path)
    made.record("worker_exit", "died", model="bert", instance=7, generation=2, sig=9)
    made.close()
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


def test_what_was_recorded_is_known_to_the_next_journal(tmp_path: Path) -> None:
    first = journal(tmp_path)
    first.record("ready", "a")
    first.close()
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"event": "cut in the mid')
    second = journal(tmp_path)
    assert [each["text"] for each in second.last()] == ["a"]
    second.record("ready", "b")
    second.record("ready", "c")
    second.close()
    assert [each["text"] for each in journal(tmp_path).last()] == ["a", "b", "c"]


def test_a_line_that_the_disk_took_a_part_of_costs_no_other(tmp_path: Path) -> None:
    made = journal(tmp_path)
    made.record("ready", "a")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))  # the kernel writes as far as that, as on a full disk
    try:
        made.record("ready", "b" * 200)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    made.record("ready", "c")
    made.close()
    assert [each["text"] for each in journal(tmp_path).last()] == ["a", "c"]


def test_last_gives_the_newest_of_one_model_oldest_first(tmp_path: Path) -> None:
    made = journal(tmp_path)
    for number in range(5):
        made.record("backoff", str(number), model="a" if number % 2 else "b")
    assert [each["text"] for each in made.last(2, "b")] == ["2", "4"]
    assert made.last(0) == []
    made.close()


def test_a_story_is_the_last_events_of_one_instance(tmp_path: Path) -> None:
    made = journal(tmp_path)
    for number in range(40):
        made.record("backoff", str(number), instance=number % 2)
    assert [each["text"] for each in made.recent(1)] == [str(number) for number in range(17, 40, 2)]
    made.close()


def test_memory_is_bounded(tmp_path: Path) -> None:
    made = journal(tmp_path)
    for _ in range(EVENTS_KEPT + 10):
        made.record("backoff")
    assert len(made.last(EVENTS_KEPT * 2)) == EVENTS_KEPT
    made.close()


def test_a_follower_hears_until_it_stops(tmp_path: Path) -> None:
    made = journal(tmp_path)
    heard: list[str] = []
    stop = made.subscribe(lambda event: heard.append(event["text"]))
    made.record("ready", "one")
    stop()
    made.record("ready", "two")
    made.close()
    assert heard == ["one"]


def test_an_event_outside_of_the_catalogue_is_a_bug(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="'surprise' is no event"):
        journal(tmp_path).record("surprise")


def test_text_that_is_no_unicode_still_becomes_a_line(tmp_path: Path) -> None:
    made = journal(tmp_path)
    made.record("load_failed", "caf\udce9")
    made.close()
    assert len(journal(tmp_path).last()) == 1
