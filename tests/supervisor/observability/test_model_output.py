from __future__ import annotations

from pathlib import Path

from mmsup.supervisor.observability.model_output import LAST_LINES, LINE_BYTES, TAIL_BYTES, ModelOutput


def test_lines_of_two_lives_are_not_mixed(tmp_path: Path) -> None:
    book = ModelOutput(tmp_path / "m.log")
    book.append("1.1", b"first ha")
    book.append("2.1", b"other\n")
    book.append("1.1", b"lf\n")
    book.close()
    assert book.last_lines(10) == ["other", "first half"]


def test_a_last_line_without_an_end_is_kept(tmp_path: Path) -> None:
    book = ModelOutput(tmp_path / "m.log")
    book.append("1.1", b"Traceback\ncut o")
    assert book.finish("1.1") == ["Traceback", "cut o"]
    assert book.last_lines(1) == ["cut o"]
    book.close()


def test_what_a_life_said_last_is_its_own(tmp_path: Path) -> None:
    book = ModelOutput(tmp_path / "m.log")
    book.append("1.1", b"of the first\n")
    book.append("1.2", b"".join(b"%d\n" % number for number in range(LAST_LINES + 50)))
    assert book.finish("1.2") == [str(number) for number in range(50, LAST_LINES + 50)]
    assert book.finish("1.1") == ["of the first"]
    assert book.finish("1.1") == []
    book.close()


def test_a_line_without_end_is_bounded(tmp_path: Path) -> None:
    book = ModelOutput(tmp_path / "m.log")
    for _ in range(100):
        book.append("1.1", b"x" * 4096)
    book.close()
    assert max(len(line) for line in book.last_lines(1000)) <= LINE_BYTES + 4096


def test_memory_and_disk_are_bounded(tmp_path: Path) -> None:
    book = ModelOutput(tmp_path / "m.log")
    for _ in range(400):
        book.append("1.1", b"y" * 65535 + b"\n")
    book.close()
    assert sum(len(line) for line in book.last_lines(10**6)) <= TAIL_BYTES
    assert sum(each.stat().st_size for each in tmp_path.iterdir()) <= 9 << 20


def test_the_next_brain_knows_what_was_printed_before(tmp_path: Path) -> None:
    book = ModelOutput(tmp_path / "m.log")
    book.append("1.1", b"one\ntwo\n")
    book.close()
    again = ModelOutput(tmp_path / "m.log")
    assert again.last_lines(1) == ["two"]
    again.close()


def test_bytes_that_are_no_text_do_not_stop_a_follower(tmp_path: Path) -> None:
    book = ModelOutput(tmp_path / "m.log")
    heard: list[str] = []
    stop = book.subscribe(heard.append)
    book.append("1.1", b"\xff\xfe\n")
    stop()
    book.append("1.1", b"unheard\n")
    book.close()
    assert heard == ["\\xff\\xfe"]
