"""Log lines of a gateway: all that its libraries and our own code log, as the log settings of the server want it.

They go to standard error, which the controller keeps as the output of the gateways (`mmsup ctl logs _gateways`).
"""

from __future__ import annotations

import logging
import os
from datetime import UTC, datetime
from typing import Final

import orjson

from mmsup.ipc.log_settings import LogSettings

_OURS: Final = logging.getLogger("mmsup")


class GatewayLogHandler(logging.Handler):
    """Text, or one JSON object a line."""

    def __init__(self, fd: int = 2) -> None:
        super().__init__()
        self._fd = fd
        self.settings = LogSettings()

    def emit(self, record: logging.LogRecord) -> None:
        level = record.levelname.lower()
        if not self.settings.shows(level):
            return
        text = self.format(record).encode("utf-8", "backslashreplace").decode()
        if self.settings.format == "json":
            time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
            line = orjson.dumps({"time": time, "level": level, "logger": record.name, "text": text})
        else:
            line = f"{level}: {text}".encode()
        os.write(self._fd, line + b"\n")


_handler: Final = GatewayLogHandler()


def apply_log_settings(settings: LogSettings) -> None:
    """From now on, for the whole process."""
    _handler.settings = settings
    _OURS.setLevel(logging.DEBUG if settings.shows("debug") else logging.NOTSET)
    root = logging.getLogger()
    if _handler not in root.handlers:
        root.addHandler(_handler)
