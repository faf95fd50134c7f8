from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator

import pytest

from mmsup.ipc.log_settings import LogSettings
from mmsup.supervisor.controller.event_console import EventConsole, LibraryLogHandler, one_line
from mmsup.supervisor.observability.console import Console


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read, write = os.pipe()
    yield read, write
    os.close(read)
    os.close(write)


def test_an_event_is_one_json_line_with_its_fields(pipe: tuple[int, int]) -> None:
    read, write = pipe
    EventConsole(Console(LogSettings(format="json"), write))(
        {"time": "t", "event": "worker_exit", "model": "bert", "instance": 7, "sig": 9, "tail": ["x"], "cap": None}
    )
    line = json.loads(os.read(read, 4096))
    assert (line["level"], line["event"], line["model"], line["sig"]) == ("warning", "worker_exit", "bert", 9)
    assert line["worker"] == 7
    assert "tail" not in line
    assert "cap" not in line


def test_what_pythons_libraries_log_goes_the_same_way(pipe: tuple[int, int]) -> None:
    read, write = pipe
    logger = logging.Logger("asyncio")
    logger.addHandler(LibraryLogHandler(Console(LogSettings(format="json"), write)))
    logger.error("a task failed")
    assert json.loads(os.read(read, 4096))["text"] == "a task failed"


def test_a_reader_who_does_not_read_stops_nobody(pipe: tuple[int, int]) -> None:
    log = EventConsole(Console(LogSettings(format="json"), pipe[1]))
    for _ in range(2000):
        log({"event": "backoff", "text": "x" * 200})


def test_text_from_outside_cannot_break_a_row() -> None:
    assert one_line("a\n\x1b[31mb\tc") == "a [31mb c"
    assert len(one_line("x" * 500)) == 160
