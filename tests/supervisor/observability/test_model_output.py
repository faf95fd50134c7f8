from __future__ import annotations

from pathlib import Path

from mmsup.supervisor.observability.model_output import LAST_LINES, LINE_BYTES, TAIL_BYTES, ModelOutput


def test_lines_of_two_workers_are_not_mixed(tmp_path: Path) -> None:
    output = ModelOutput(tmp_path / "m.log")
    output.append("1.1", b"first ha")
    output.append("2.1", b"other\n")
    output.append("1.1", b"lf\n")
    output.close()
    assert output.last_lines(10) == ["other", "first half"]


def test_an_unterminated_last_line_is_kept(tmp_path: Path) -> None:
    output = ModelOutput(tmp_path / "m.log")
    output.append("1.1", b"Traceback\ncut o")
    assert output.finish("1.1") == ["Traceback", "cut o"]
    assert output.last_lines(1) == ["cut o"]
    output.close()


def test_the_last_lines_of_a_worker_are_its_own(tmp_path: Path) -> None:
    output = ModelOutput(tmp_path / "m.log")
    output.append("1.1", b"of the first\n")
    output.append("1.2", b"".join(b"%d\n" % number for number in range(LAST_LINES + 50)))
    assert output.finish("1.2") == [str(number) for number in range(50, LAST_LINES + 50)]
    assert output.finish("1.1") == ["of the first"]
    assert output.finish("1.1") == []
    output.close()


def test_an_endless_line_is_cut(tmp_path: Path) -> None:
    output = ModelOutput(tmp_path / "m.log")
    for _ in range(100):
        output.append("1.1", b"x" * 4096)
    output.close()
    assert max(len(line) for line in output.last_lines(1000)) <= LINE_BYTES + 4096


def test_memory_and_disk_are_bounded(tmp_path: Path) -> None:
    output = ModelOutput(tmp_path / "m.log")
    for _ in range(400):
        output.append("1.1", b"y" * 65535 + b"\n")
    output.close()
    assert sum(len(line) for line in output.last_lines(10**6)) <= TAIL_BYTES
    assert sum(each.stat().st_size for each in tmp_path.iterdir()) <= 9 << 20


def test_earlier_output_is_read_back_from_the_file(tmp_path: Path) -> None:
    output = ModelOutput(tmp_path / "m.log")
    output.append("1.1", b"one\ntwo\n")
    output.close()
    again = ModelOutput(tmp_path / "m.log")
    assert again.last_lines(1) == ["two"]
    again.close()


def test_bytes_that_are_not_utf8_reach_a_subscriber_escaped(tmp_path: Path) -> None:
    output = ModelOutput(tmp_path / "m.log")
    received: list[str] = []
    stop = output.subscribe(received.append)
    output.append("1.1", b"\xff\xfe\n")
    stop()
    output.append("1.1", b"unheard\n")
    output.close()
    assert received == ["\\xff\\xfe"]
