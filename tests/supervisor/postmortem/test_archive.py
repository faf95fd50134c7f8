from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import pytest

from mmsup.supervisor.postmortem.archive import MAX_UNWRITTEN, CrashArchive


def archive(tmp_path: Path, **bounds: Any) -> CrashArchive:  # of Archive
    made = CrashArchive(tmp_path / "deaths", **bounds)
    made.open()
    return made


def numbers(kept: CrashArchive, model: str) -> list[int]:
    return [each["number"] for each in kept.reports(model)]


def test_a_bundle_lies_where_it_says_and_is_its_owners_alone(tmp_path: Path) -> None:
    place = archive(tmp_path).write("bert", {"cause": "é\ud800"})
    assert place == "deaths/bert/00000001.json"
    assert (tmp_path / place).stat().st_mode & 0o777 == 0o600
    assert archive(tmp_path).reports("bert")[0]["number"] == 1


def test_the_last_death_comes_first_and_the_oldest_goes_first(tmp_path: Path) -> None:
    kept = archive(tmp_path, per_model=3)
    for _ in range(5):
        kept.write("bert", {})
    kept.write("other", {})
    assert numbers(kept, "bert") == [5, 4, 3]
    assert numbers(kept, "other") == [6]
    assert len(list((tmp_path / "deaths" / "bert").iterdir())) == 3


def test_there_is_a_bound_for_all_models_together_and_empty_folders_go(tmp_path: Path) -> None:
    kept = archive(tmp_path, in_all=4)
    for number in range(10):
        kept.write(f"m{number}", {})
    assert sorted(each.name for each in (tmp_path / "deaths").iterdir()) == ["m6", "m7", "m8", "m9"]


def test_there_is_a_bound_in_bytes(tmp_path: Path) -> None:
    kept = archive(tmp_path, limit_bytes=3000)
    for _ in range(4):
        kept.write("bert", {"text": "x" * 1000})
    assert numbers(kept, "bert") == [4, 3]


def test_what_an_earlier_one_wrote_is_known_and_no_number_is_given_twice(tmp_path: Path) -> None:
    first = archive(tmp_path)
    for _ in range(3):
        first.write("bert", {})
    (tmp_path / "deaths" / "bert" / "00000009.json.new").write_text("cut off")
    (tmp_path / "deaths" / "bert" / "notes.txt").write_text("somebody's own")
    second = archive(tmp_path)
    assert second.write("bert", {}) == "deaths/bert/00000004.json"
    assert numbers(second, "bert") == [4, 3, 2, 1]
    assert not list((tmp_path / "deaths").rglob("*.new"))
    assert (tmp_path / "deaths" / "bert" / "notes.txt").exists()


def test_bounds_that_became_smaller_hold_from_the_start(tmp_path: Path) -> None:
    first = archive(tmp_path)
    for _ in range(5):
        first.write("bert", {})
    assert numbers(archive(tmp_path, in_all=2), "bert") == [5, 4]


def test_a_disk_that_refuses_is_told_and_what_it_refused_is_still_known(tmp_path: Path) -> None:
    kept = archive(tmp_path)
    kept.write("bert", {"cause": "first"})
    (tmp_path / "deaths" / "other").write_text("in the way")
    for number in range(2):
        with pytest.raises(OSError, match="other"):
            kept.write("other", {"cause": number})
    assert [each["cause"] for each in kept.reports("other")] == [1]
    (tmp_path / "deaths" / "other").unlink()
    kept.write("other", {"cause": 2})
    assert [each["cause"] for each in kept.reports("other")] == [2]


def test_what_is_held_for_a_full_disk_is_bounded(tmp_path: Path) -> None:
    (tmp_path / "deaths").write_text("in the way")
    kept = archive(tmp_path)
    for number in range(MAX_UNWRITTEN + 1):
        with pytest.raises(OSError, match="deaths"):
            kept.write(f"m{number}", {})
    assert [len(kept.reports(f"m{number}")) for number in (0, 1, MAX_UNWRITTEN)] == [0, 1, 1]


def test_a_bundle_that_was_damaged_is_passed_over(tmp_path: Path) -> None:
    kept = archive(tmp_path)
    for _ in range(3):
        kept.write("bert", {})
    (tmp_path / "deaths" / "bert" / "00000002.json").write_text("{")
    (tmp_path / "deaths" / "bert" / "00000003.json").unlink()
    assert numbers(kept, "bert") == [1]


def test_a_bundle_that_did_not_fit_on_the_disk_leaves_nothing_half_written(tmp_path: Path) -> None:
    kept = archive(tmp_path)
    kept.write("bert", {"cause": "small"})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))  # the kernel refuses in mid-write, as a full disk does
    try:
        with pytest.raises(OSError, match="too large"):
            kept.write("bert", {"cause": "large", "text": "x" * 100_000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [each.name for each in (tmp_path / "deaths" / "bert").iterdir()] == ["00000001.json"]
    assert [each["cause"] for each in kept.reports("bert")] == ["large", "small"]
