"""Where the time of a cold start goes, of events and replies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cold_stages import EventReader, stage_table, with_replies
from density_client import Reply
from event_tail import EventTail


def event(name: str, model: str, at_ms: int, **fields: object) -> dict[str, Any]:
    return {"time": f"2026-01-01T00:00:00.{at_ms:03}Z", "event": name, "model": model, **fields}


def test_each_stage_ends_where_the_next_one_begins_and_together_they_are_what_the_client_waited() -> None:
    reader = EventReader()
    for each in (
        event("model_waking", "a", 110),
        event("model_asleep", "b", 120, for_model="a"),
        event("worker_stopped", "b", 150),
        event("worker_spawn", "a", 155),
        event("worker_ready", "a", 185, start="forked: of zygote 1"),
    ):
        reader.read(each)
    ahead_s = 1767225600.0  # 2026-01-01
    replies = [
        Reply(0, 0, 0.1, 0.09, 200, is_cold=True, body=b""),
        Reply(0, 0, 0.15, 0.04, 200, is_cold=True, body=b""),
    ]
    with_replies(reader.starts, replies, ["a"], ahead_s)
    (start,) = reader.starts
    assert start.stages_s() == pytest.approx((0.01, 0.04, 0.005, 0.03, 0.005), abs=1e-6)
    assert sum(start.stages_s()) == pytest.approx(start.took_s)
    assert start.drains_s == pytest.approx([0.03], abs=1e-6)
    assert "1 cold starts, 1 of them forked" in stage_table(reader.starts)


def test_a_load_that_needed_no_room_or_was_not_answered_is_told_apart() -> None:
    reader = EventReader()
    for each in (
        event("model_waking", "a", 110),
        event("worker_spawn", "a", 120),
        event("worker_ready", "a", 150),
        event("model_waking", "b", 200),
    ):
        reader.read(each)
    with_replies(reader.starts, [Reply(0, 0, 0.1, 0.06, 200, is_cold=True, body=b"")], ["a", "b"], 1767225600.0)
    assert reader.starts[0].stages_s() == pytest.approx((0.01, 0.0, 0.01, 0.03, 0.01), abs=1e-6)
    assert [each.is_complete for each in reader.starts] == [True, False]
    assert "no cold start" in stage_table(reader.starts[1:])


def test_events_are_followed_over_the_change_to_a_new_file(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    file.write_text('{"event": 1}\n{"event": 2')
    tail = EventTail(file)
    assert [each["event"] for each in tail.read()] == [1]
    with file.open("a") as more:
        more.write("}\n")
    file.rename(tmp_path / "before")
    file.write_text('{"event": 3}\n')
    assert [each["event"] for each in tail.read()] == [2, 3]
    assert not list(tail.read())
    tail.close()
