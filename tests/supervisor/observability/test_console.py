from __future__ import annotations

import json
import os
import pty
from collections.abc import Iterator

import pytest

from mmsup.ipc.log_settings import LogSettings
from mmsup.supervisor.observability.console import LINE_BYTES, Console


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read, write = os.pipe()
    yield read, write
    os.close(read)
    os.close(write)


def test_off_a_terminal_a_line_is_one_json_object(pipe: tuple[int, int]) -> None:
    Console(LogSettings(format="auto"), pipe[1]).log("info", "brain_start", pid=7, text="a\nb")
    line = json.loads(os.read(pipe[0], 10000))
    assert line.pop("time").endswith("Z")
    assert line == {"level": "info", "event": "brain_start", "pid": 7, "text": "a\nb"}


def test_on_a_terminal_a_line_is_text() -> None:
    ours, theirs = pty.openpty()
    Console(LogSettings(format="auto"), theirs).log("warning", "brain_exit", pid=7, text="\x1b[2J\n")
    line = os.read(ours, 10000).decode()
    assert 'warning brain_exit pid=7 text="\\u001b[2J\\n"' in line
    os.close(ours)
    os.close(theirs)


def test_the_format_can_be_set(pipe: tuple[int, int]) -> None:
    Console(LogSettings(format="default"), pipe[1]).log("info", "stopped", code=0)
    assert os.read(pipe[0], 10000).endswith(b"info    stopped code=0\n")


def test_a_slow_reader_loses_lines_which_are_counted_and_never_blocks(pipe: tuple[int, int]) -> None:
    console = Console(LogSettings(format="json"), pipe[1])
    for _ in range(3000):
        console.log("info", "brain_start", text="x" * 100)
    os.set_blocking(pipe[0], False)
    received = 0
    while True:
        try:
            received += os.read(pipe[0], 1 << 20).count(b"\n")
        except BlockingIOError:
            break
    assert 0 < received < 3000
    console.log("info", "stopped")
    assert json.loads(os.read(pipe[0], 10000))["lost_lines"] == 3000 - received
    console.log("info", "stopped")
    assert "lost_lines" not in json.loads(os.read(pipe[0], 10000))


def test_a_line_is_never_longer_than_an_atomic_pipe_write(pipe: tuple[int, int]) -> None:
    Console(LogSettings(format="json"), pipe[1]).log("info", "x", text="y" * 10000)
    assert len(os.read(pipe[0], 100000)) == LINE_BYTES


def test_a_closed_pipe_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    Console(LogSettings(format="json"), write).log("info", "x")
    os.close(write)
