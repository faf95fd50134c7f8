"""An error in the configuration: its place and its text. All errors are collected, and reported together."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

_SHOWN_LENGTH: Final = 60
REASON_ERRORS: Final = 4
_NOT_SHOWN: Final = "is not valid; `mmsup check` and `mmsup ctl list` say why"
_TYPE_NAMES: Final[dict[type, str]] = {list: "a list", tuple: "a list", dict: "a mapping"}


@dataclass(frozen=True, slots=True)
class ConfigError:
    """`place` is file, line and key (`configs/two.yaml:7: models.bert.memory`), `text` one sentence. Both may quote the
    file: values may be secrets, and a link may have led to any file."""

    place: str
    text: str
    public: str = field(default="", compare=False)
    """Place and text without anything of the file's content; empty: the file and the line alone."""
    paste: str = field(default="", compare=False)
    """For the operator alone: the lines of YAML that mend it, the first a comment that names their file."""

    def __str__(self) -> str:
        return f"{self.place}: {self.text}"

    @property
    def for_clients(self) -> str:
        """What HTTP clients may see of it."""
        return self.public or f"{self.place.partition(': ')[0]}: {_NOT_SHOWN}"


def hidden_error(place: str, text: str, public_place: str) -> ConfigError:
    """An error whose text quotes a file's content, and of whose place clients may see so much."""
    return ConfigError(place, text, f"{public_place}: {_NOT_SHOWN}")


def plain_error(place: str, text: str) -> ConfigError:
    """An error of which neither place nor text quotes a file's content."""
    return ConfigError(place, text, f"{place}: {text}")


def first_errors(texts: Sequence[str]) -> str:
    """The first of them in one line, and how many more there are."""
    more = len(texts) - REASON_ERRORS
    return "; ".join(texts[:REASON_ERRORS]) + (f"; and {more} more" if more > 0 else "")


class InvalidValue(Exception):  # noqa: N818 - an answer, caught by the caller, which knows the place
    """A value is invalid: one text, or several with keys relative to the value's own."""

    def __init__(self, *problems: str | tuple[str, str]) -> None:
        self.problems = tuple(("", each) if isinstance(each, str) else each for each in problems)
        super().__init__("; ".join(f"{key}: {text}" if key else text for key, text in self.problems))


def displayed(value: object, length: int = _SHOWN_LENGTH) -> str:
    """A value as it stands in an error, a text cut after so many characters."""
    match value:
        case None:
            return "nothing"
        case bool():
            return "true" if value else "false"
        case str():
            return json.dumps(value if len(value) <= length else value[:length] + "…", ensure_ascii=False)
        case int():
            return str(value) if value.bit_length() <= 64 else "a number of more than 64 bits"
        case float():
            return repr(value)
        case _:
            return _TYPE_NAMES.get(type(value), "a value of an unknown type")


def unknown_name(word: object, known: Iterable[str], what: str = "not known") -> str:
    """Text about a word that is none of the known ones: with the nearest of them, or with all if they are few."""
    words = sorted(known)
    near = difflib.get_close_matches(str(word)[:_SHOWN_LENGTH], words, n=1) if isinstance(word, str) else []
    if near:
        return f"{displayed(word)} is {what}; the nearest is {near[0]}"
    few = f"; known are {', '.join(words)}" if len(words) <= 8 else ""
    return f"{displayed(word)} is {what}{few}"
