from __future__ import annotations

from pathlib import Path

from mmsup.supervisor.observability.rotating_file import RotatingFile


def test_two_files_hold_at_most_twice_the_limit_and_the_newest_lines(tmp_path: Path) -> None:
    file = RotatingFile(tmp_path / "log", limit_bytes=100)
    for number in range(100):
        file.write(b"%09d\n" % number)
    file.close()
    kept = file.previous_path().read_bytes() + file.path.read_bytes()
    assert len(kept) <= 200
    assert kept.endswith(b"000000099\n")
    numbers = [int(line) for line in kept.splitlines()]
    assert numbers == list(range(numbers[0], 100))


def test_a_file_is_continued_where_it_ended(tmp_path: Path) -> None:
    for part in (b"a", b"b"):
        file = RotatingFile(tmp_path / "sub" / "log")
        file.write(part)
        file.close()
    assert (tmp_path / "sub" / "log").read_bytes() == b"ab"


def test_a_disk_that_refuses_loses_lines_and_counts_them(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    file = RotatingFile(tmp_path / "log")
    file.write(b"x")
    file.write(b"y")
    assert file.lost_writes == 2


def test_a_link_in_the_place_of_the_file_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("mine")
    (tmp_path / "log").symlink_to(target)
    file = RotatingFile(tmp_path / "log")
    file.write(b"overwritten")
    assert file.lost_writes == 1
    assert target.read_text() == "mine"
