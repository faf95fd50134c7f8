"""Which log lines the server's processes write, and in which form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

LOG_FORMATS: Final = ("auto", "default", "ISO8601", "json")
"""`auto`: text on a terminal, else JSON lines. `ISO8601` is the text of `default`, whose times are so anyway."""


@dataclass(frozen=True, slots=True)
class LogSettings:
    """Sent by the controller to each gateway, at first and when they change."""

    info: bool = True
    warning: bool = True
    error: bool = True
    verbose_level: int = 0
    """From 1 on: `debug` lines too."""
    format: str = "auto"

    def shows(self, level: str) -> bool:
        """Whether lines of this level are written: `debug`, `info`, `warning`, or any that is worse."""
        match level:
            case "debug":
                return self.verbose_level > 0
            case "info":
                return self.info
            case "warning":
                return self.warning
            case _:
                return self.error
