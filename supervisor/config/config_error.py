"""A fault of configuration: where it stands, what is wrong there. Configuration is never refused without one.

All faults of a run are collected and shown together; nothing here raises at the first.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

_SHOWN_LENGTH: Final = 60
_TYPE_NAMES: Final[dict[type, str]] = {list: "a list", tuple: "a list", dict: "a mapping"}


@dataclass(frozen=True, slots=True)
class ConfigError:
    """`place` is file and key (`configs/two.yaml:7: models.bert.memory`), `text` one clear sentence."""

    place: str
    text: str

    def __str__(self) -> str:
        return f"{self.place}: {self.text}"


class InvalidValue(Exception):  # noqa: N818 - it is an answer, caught by the caller that knows the place
    """A value that is not valid: one text, or several with their keys below the value's own place."""

    def __init__(self, *wrongs: str | tuple[str, str]) -> None:
        self.problems: tuple[tuple[str, str], ...] = tuple(
            ("", each) if isinstance(each, str) else each for each in wrongs
        )
        super().__init__("; ".join(f"{key}: {text}" if key else text for key, text in self.problems))


def displayed(value: object) -> str:
    """A value as it may stand in a fault: short, printable, whatever it is."""
    match value:
        case None:
            return "nothing"
        case bool():
            return "true" if value else "false"
        case str():
            return json.dumps(value if len(value) <= _SHOWN_LENGTH else value[:_SHOWN_LENGTH] + "…", ensure_ascii=False)
        case int():
            return str(value) if value.bit_length() <= 64 else "a number of more than 64 bits"
        case float():
            return repr(value)
        case _:
            return _TYPE_NAMES.get(type(value), "a value of a strange kind")


def unknown_name(word: object, known: Iterable[str], what: str = "not known") -> str:
    """What to say of a word that is none of the known ones: the nearest of them, or all if they are few."""
    words = sorted(known)
    near = difflib.get_close_matches(str(word)[:_SHOWN_LENGTH], words, n=1) if isinstance(word, str) else []
    if near:
        return f"{displayed(word)} is {what}; the nearest is {near[0]}"
    few = f"; known are {', '.join(words)}" if len(words) <= 8 else ""
    return f"{displayed(word)} is {what}{few}"
