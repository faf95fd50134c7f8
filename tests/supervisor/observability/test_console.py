from __future__ import annotations

import json
import os
import pty
from collections.abc import Iterator

import pytest

from mmsup.supervisor.observability.console import LINE_BYTES, Console


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read, write = os.pipe()
    yield read, write
    os.close(read)
    os.close(write)


def test_off_a_terminal_a_line_is_one_json_object(pipe: tuple[int, int]) -> None:
    Console("auto", pipe[1]).log("info", "brain_start", pid=7, text="a\nb")
    said = json.loads(os.read(pipe[0], 10000))
    assert said.pop("time").endswith("Z")
    assert said == {"level": "info", "event": "brain_start", "pid": 7, "text": "a\nb"}


def test_on_a_terminal_a_line_is_text() -> None:
    ours, theirs = pty.openpty()
    Console("auto", theirs).log("warning", "brain_exit", pid=7, text="\x1b[2J\n")
    said = os.read(ours, 10000).decode()
    assert 'warning brain_exit pid=7 text="\\u001b[2J\\n"' in said
    os.close(ours)
    os.close(theirs)


def test_the_format_can_be_demanded(pipe: tuple[int, int]) -> None:
    Console("default", pipe[1]).log("info", "stopped", code=0)
    assert os.read(pipe[0], 10000).endswith(b"info    stopped code=0\n")


def test_a_reader_that_sleeps_costs_lines_and_no_time_and_they_are_counted(pipe: tuple[int, int]) -> None:
    console = Console("json", pipe[1])
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


def test_a_line_is_never_longer_than_a_pipe_takes_at_once(pipe: tuple[int, int]) -> None:
    Console("json", pipe[1]).log("info", "x", text="y" * 10000)
    assert len(os.read(pipe[0], 100000)) == LINE_BYTES


def test_a_reader_that_is_gone_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    Console("json", write).log("info", "x")
    os.close(write)
