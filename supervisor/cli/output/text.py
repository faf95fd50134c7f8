"""Escapes text from models and servers, so that no control sequence in it reaches a terminal."""

from __future__ import annotations

from typing import Any, Final

PASTED_LINE: Final = "\n    "
"""What a line of YAML that mends an error begins with."""


def printable(text: str) -> str:
    """The text with control characters and characters that change the reading direction escaped."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def cell(value: Any) -> str:  # anything that JSON holds
    """A value of a JSON result as one line of text; lines that are indented to be pasted follow each other in it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return printable(str(value).replace(PASTED_LINE, "  "))
