from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import pytest

from mmsup.supervisor.postmortem.archive import MAX_UNWRITTEN, CrashArchive


def archive(tmp_path: Path, **bounds: Any) -> CrashArchive:  # of CrashArchive
    made = CrashArchive(tmp_path / "deaths", **bounds)
    made.open()
    return made


def numbers(archived: CrashArchive, model: str) -> list[int]:
    return [each["number"] for each in archived.reports(model)]


def test_a_report_is_at_the_returned_path_and_readable_by_its_owner_alone(tmp_path: Path) -> None:
    place = archive(tmp_path).write("bert", {"cause": "é\ud800"})
    assert place == "deaths/bert/00000001.json"
    assert (tmp_path / place).stat().st_mode & 0o777 == 0o600
    assert archive(tmp_path).reports("bert")[0]["number"] == 1


def test_the_newest_report_is_listed_first_and_the_oldest_removed_first(tmp_path: Path) -> None:
    archived = archive(tmp_path, per_model=3)
    for _ in range(5):
        archived.write("bert", {})
    archived.write("other", {})
    assert numbers(archived, "bert") == [5, 4, 3]
    assert numbers(archived, "other") == [6]
    assert len(list((tmp_path / "deaths" / "bert").iterdir())) == 3


def test_all_models_together_are_bounded_and_empty_folders_removed(tmp_path: Path) -> None:
    archived = archive(tmp_path, in_all=4)
    for number in range(10):
        archived.write(f"m{number}", {})
    assert sorted(each.name for each in (tmp_path / "deaths").iterdir()) == ["m6", "m7", "m8", "m9"]


def test_the_bytes_are_bounded(tmp_path: Path) -> None:
    archived = archive(tmp_path, limit_bytes=3000)
    for _ in range(4):
        archived.write("bert", {"text": "x" * 1000})
    assert numbers(archived, "bert") == [4, 3]


def test_earlier_reports_are_found_and_no_number_is_reused(tmp_path: Path) -> None:
    first = archive(tmp_path)
    for _ in range(3):
        first.write("bert", {})
    (tmp_path / "deaths" / "bert" / "00000009.json.new").write_text("cut off")
    (tmp_path / "deaths" / "bert" / "notes.txt").write_text("not a report")
    second = archive(tmp_path)
    assert second.write("bert", {}) == "deaths/bert/00000004.json"
    assert numbers(second, "bert") == [4, 3, 2, 1]
    assert not list((tmp_path / "deaths").rglob("*.new"))
    assert (tmp_path / "deaths" / "bert" / "notes.txt").exists()


def test_lowered_limits_hold_from_the_start(tmp_path: Path) -> None:
    first = archive(tmp_path)
    for _ in range(5):
        first.write("bert", {})
    assert numbers(archive(tmp_path, in_all=2), "bert") == [5, 4]


def test_a_report_that_the_disk_refuses_raises_and_is_still_listed(tmp_path: Path) -> None:
    archived = archive(tmp_path)
    archived.write("bert", {"cause": "first"})
    (tmp_path / "deaths" / "other").write_text("in the way")
    for number in range(2):
        with pytest.raises(OSError, match="other"):
            archived.write("other", {"cause": number})
    assert [each["cause"] for each in archived.reports("other")] == [1]
    (tmp_path / "deaths" / "other").unlink()
    archived.write("other", {"cause": 2})
    assert [each["cause"] for each in archived.reports("other")] == [2]


def test_reports_kept_for_a_full_disk_are_bounded(tmp_path: Path) -> None:
    (tmp_path / "deaths").write_text("in the way")
    archived = archive(tmp_path)
    for number in range(MAX_UNWRITTEN + 1):
        with pytest.raises(OSError, match="deaths"):
            archived.write(f"m{number}", {})
    assert [len(archived.reports(f"m{number}")) for number in (0, 1, MAX_UNWRITTEN)] == [0, 1, 1]


def test_a_damaged_report_is_skipped(tmp_path: Path) -> None:
    archived = archive(tmp_path)
    for _ in range(3):
        archived.write("bert", {})
    (tmp_path / "deaths" / "bert" / "00000002.json").write_text("{")
    (tmp_path / "deaths" / "bert" / "00000003.json").unlink()
    assert numbers(archived, "bert") == [1]


def test_a_report_that_does_not_fit_on_the_disk_leaves_no_partial_file(tmp_path: Path) -> None:
    archived = archive(tmp_path)
    archived.write("bert", {"cause": "small"})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))  # the kernel refuses in mid-write, as a full disk does
    try:
        with pytest.raises(OSError, match="too large"):
            archived.write("bert", {"cause": "large", "text": "x" * 100_000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [each.name for each in (tmp_path / "deaths" / "bert").iterdir()] == ["00000001.json"]
    assert [each["cause"] for each in archived.reports("bert")] == ["large", "small"]


def test_a_file_that_cannot_be_looked_at_makes_no_number_free(tmp_path: Path) -> None:
    archive(tmp_path).write("bert", {"cause": "first"})
    (tmp_path / "deaths" / "bert" / "00000000.json").symlink_to("nowhere")
    (tmp_path / "deaths" / "bert" / "folder.new").mkdir()
    again = archive(tmp_path)
    assert again.write("bert", {}) == "deaths/bert/00000002.json"
    assert again.reports("bert")[-1]["cause"] == "first"


def test_a_report_that_is_nested_beyond_measure_is_left_out(tmp_path: Path) -> None:
    place = archive(tmp_path).write("bert", {})
    (tmp_path / place).write_text("[" * 200_000)
    assert archive(tmp_path).reports("bert") == []
