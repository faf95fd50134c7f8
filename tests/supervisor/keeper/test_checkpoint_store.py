from __future__ import annotations

import pytest

from mmsup.ipc.transport.control_channel import MESSAGE_LIMIT
from mmsup.ipc.transport.dataclass_codec import to_json
from mmsup.supervisor.keeper import controller_restart
from mmsup.supervisor.keeper.controller_restart import PART_BYTES, CheckpointStore


def test_entries_come_in_as_many_messages_as_they_need_and_each_fits() -> None:
    store = CheckpointStore({})
    for number in range(100):
        assert store.save(f"model/{number}", "x" * (number * 500))
    parts = store.parts()
    assert 1 < len(parts) < 30
    assert all(len(to_json(each)) <= MESSAGE_LIMIT for each in parts)
    assert {key: text for each in parts for key, text in each.entries.items()} == store.entries
    assert len(store.entries) == 99, "an empty text is no entry"


def test_a_store_without_entries_needs_no_message() -> None:
    store = CheckpointStore({"a": "text"})
    assert store.save("a", "")
    assert store.save("never there", "")
    assert store.parts() == []


@pytest.mark.parametrize("text", ["x" * PART_BYTES, '"' * (PART_BYTES // 2)])
def test_an_entry_that_fits_into_no_message_is_refused_and_the_old_one_stays(text: str) -> None:
    store = CheckpointStore({"a": "kept"})
    assert not store.save("a", text)
    assert store.entries == {"a": "kept"}


def test_all_entries_together_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controller_restart, "TOTAL_BYTES", 1000)
    store = CheckpointStore({"a": "x" * 300})
    assert store.save("b", "x" * 600)
    assert not store.save("c", "x" * 100)
    assert store.save("b", "x")
    assert store.save("c", "x" * 100)
