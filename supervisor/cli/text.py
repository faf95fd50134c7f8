"""Values as people read them: ages, and foreign text made safe for a terminal. Pure; sizes are in units.py."""

from __future__ import annotations

from typing import Any, Final

_SPANS: Final = ((86400, "d"), (3600, "h"), (60, "m"))


def age(seconds: float | None) -> str:
    """`0.4s`, `12s`, `3m 20s`, `2h 5m`, `4d 1h`; empty if there is none."""
    if seconds is None:
        return ""
    if seconds < 10:
        return f"{max(seconds, 0):.1f}s"
    whole = int(seconds)
    for span, (length, unit) in enumerate(_SPANS):
        if whole >= length:
            smaller, name = _SPANS[span + 1] if span + 1 < len(_SPANS) else (1, "s")
            return f"{whole // length}{unit} {whole % length // smaller}{name}"
    return f"{whole}s"


def printable(text: str) -> str:
    """The text with everything escaped that could steer a terminal or turn the order of what is read.

    Model names, reasons and log lines come from others: an escape sequence in them must not reach a screen.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def cell(value: Any) -> str:  # anything that JSON holds
    """One value of the server's as text of one line."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return printable(str(value))
