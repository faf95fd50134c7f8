"""Writes events as log lines for operators, and the table of models at the start. Never waits for a slow reader.

Warnings of Python's libraries go the same way, so that nothing else writes to a standard error that may block.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Final

from mmsup.ipc.log_settings import LogSettings
from mmsup.supervisor.models.model import Model
from mmsup.supervisor.observability.console import Console, Field
from mmsup.supervisor.observability.event_log import Event

_LEVELS: Final = {
    "worker_exit": "warning",
    "worker_condemned": "warning",
    "backoff": "warning",
    "load_refused": "warning",
    "memory_overbooked": "warning",
    "gateway_exit": "warning",
    "grpc_front_exit": "warning",
    "grpc_front_fallback": "warning",
    "brain_exit": "warning",
    "bundle_lost": "warning",
    "repository_lost": "warning",
    "not_saved": "warning",
    "state_unreadable": "error",
    "load_failed": "error",
    "load_timeout": "error",
    "crash_loop": "error",
}
_NAMES: Final = {"instance": "worker"}
_QUIET: Final = frozenset({"time", "event", "tail"})
"""Fields of an event that a log line has in another place, or has no room for."""


class EventConsole:
    def __init__(self, console: Console) -> None:
        self._console = console

    def __call__(self, event: Event) -> None:
        fields: dict[str, Field] = {
            _NAMES.get(name, name): value if isinstance(value, str | int | float | bool) else json.dumps(value)
            for name, value in event.items()
            if name not in _QUIET and value not in (None, "", [])
        }
        self._console.log(_LEVELS.get(event["event"], "info"), event["event"], **fields)


class LibraryLogHandler(logging.Handler):
    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        self._console.log(record.levelname.lower(), "log", logger=record.name, text=text)


def apply_log_settings(console: Console, settings: LogSettings) -> None:
    console.apply(settings)
    logging.getLogger("mmsup").setLevel(logging.DEBUG if settings.shows("debug") else logging.NOTSET)


MODEL_COLUMNS: Final = ("model", "version", "status", "reason")


def model_rows(models: Sequence[Model]) -> list[list[str]]:
    rows: list[list[str]] = []
    for model in models:
        versions = model.route().versions
        rows += [[model.name, each.version, each.state.upper(), one_line(each.reason)] for each in versions]
        if not versions:
            rows.append([model.name, "", str(model.state()).upper(), ""])
    return rows


def one_line(text: str, most: int = 160) -> str:
    """Text from outside without control characters, cut to one line of a terminal."""
    safe = " ".join("".join(each if each.isprintable() else " " for each in text).split())
    return safe if len(safe) <= most else f"{safe[: most - 1]}…"
