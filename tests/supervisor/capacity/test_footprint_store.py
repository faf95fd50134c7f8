from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mmsup.supervisor.capacity import footprint_store
from mmsup.supervisor.capacity.footprint import Footprint, FootprintKey
from mmsup.supervisor.capacity.footprint_store import FootprintStore

KEY = FootprintKey("bert", "1", "ort", "cpu")
MEASURED = Footprint(100, 80, 120, load_s=1.5)
NEGATIVE = {"model": "m", "version": "1", "engine": "e", "device": "cpu", "digest": "d", "settled_bytes": -1}


def written(path: Path, *entries: tuple[FootprintKey, str, Footprint]) -> None:
    store = FootprintStore(path)
    for entry in entries:
        store.put(*entry)
    store.write(store.contents())


def test_what_was_measured_is_known_after_a_restart_and_of_other_files_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "state" / "footprints.json"
    written(path, (KEY, "d1", MEASURED))
    again = FootprintStore(path)
    assert again.get(KEY, "d1") == MEASURED
    assert again.get(KEY, "d2") is None
    assert again.get(replace(KEY, device="cuda"), "d1") is None
    again.put(KEY, "d2", replace(MEASURED, settled_bytes=1))
    assert again.get(KEY, "d1") is None
    assert list(again.of_model("bert")) == [KEY]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"format": 2, "footprints": []}',
        '{"format": 1, "footprints": {}}',
        '{"format": 1, "footprints": [1, null, {"model": "m"}, {"model": 1}]}',
        json.dumps({"format": 1, "footprints": [NEGATIVE]}),
    ],
)
def test_a_file_that_cannot_be_read_is_begun_anew(tmp_path: Path, text: str) -> None:
    path = tmp_path / "footprints.json"
    path.write_text(text)
    store = FootprintStore(path)
    assert store.of_model("m") == {}
    store.put(KEY, "d", MEASURED)
    store.write(store.contents())
    assert FootprintStore(path).get(KEY, "d") == MEASURED


def test_members_of_a_later_version_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "footprints.json"
    written(path, (KEY, "d", MEASURED))
    document = json.loads(path.read_text())
    document["footprints"][0]["pressure"] = {"some": 1}
    path.write_text(json.dumps(document))
    assert FootprintStore(path).get(KEY, "d") == MEASURED


def test_number_and_bytes_are_bounded_and_the_oldest_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footprint_store, "MAX_ENTRIES", 8)
    path = tmp_path / "footprints.json"
    entries = [(replace(KEY, model=f"m{number}"), "d", MEASURED) for number in range(20)]
    written(path, *entries)
    kept = [name for name in (f"m{number}" for number in range(20)) if FootprintStore(path).of_model(name)]
    assert kept == [f"m{number}" for number in range(12, 20)]
    monkeypatch.setattr(footprint_store, "MAX_BYTES", 1000)
    written(path, *entries)
    assert 500 < path.stat().st_size <= 1000
    assert FootprintStore(path).of_model("m19")
    assert not FootprintStore(path).of_model("m12")


def test_a_disk_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    written(tmp_path / "file" / "footprints.json", (KEY, "d", MEASURED))
