"""Lines that a gateway logs, by the settings in force."""

from __future__ import annotations

import json
import logging
import os

import pytest

from mmsup.gateway.observability.log_output import GatewayLogHandler
from mmsup.ipc.log_settings import LogSettings


def lines_of(settings: LogSettings) -> list[str]:
    """What is written of one line of each level, and of an exception."""
    read, write = os.pipe()
    handler = GatewayLogHandler(write)
    handler.settings = settings
    logger = logging.Logger("mmsup.gateway")
    logger.addHandler(handler)
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
        logger.log(level, "a line with %s", "\N{SNOWMAN}")
    try:
        raise ValueError("no\udcff")
    except ValueError:
        logger.exception("bug")
    os.close(write)
    with os.fdopen(read, encoding="utf-8") as written:
        return written.read().splitlines()


@pytest.mark.parametrize(
    ("settings", "levels"),
    [
        (LogSettings(), {"info", "warning", "error"}),
        (LogSettings(verbose_level=1), {"debug", "info", "warning", "error"}),
        (LogSettings(info=False), {"warning", "error"}),
        (LogSettings(warning=False), {"info", "error"}),
        (LogSettings(error=False), {"info", "warning"}),
        (LogSettings(info=False, warning=False, error=False), set()),
    ],
)
def test_only_the_levels_that_are_on_are_written(settings: LogSettings, levels: set[str]) -> None:
    lines = lines_of(settings)
    assert {each.partition(":")[0] for each in lines if ": a line" in each} == levels
    assert any("Traceback" in each for each in lines) is ("error" in levels)


def test_in_json_each_is_one_object_with_its_trace() -> None:
    lines = [json.loads(each) for each in lines_of(LogSettings(format="json"))]
    assert [each["level"] for each in lines] == ["info", "warning", "error", "error"]
    assert lines[0]["text"] == "a line with \N{SNOWMAN}"
    assert lines[0]["logger"] == "mmsup.gateway"
    assert "Traceback" in lines[-1]["text"]
