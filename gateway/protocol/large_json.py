"""Parsing of large JSON texts in small steps: long lists of numbers become arrays, the remainder is limited. Pure.

One call on a large text holds the interpreter lock, and all other requests wait: a copy of 60 MB takes 20 ms, parsing a
megabyte of floats 12 ms. So nothing is done to a whole text at once. A step is 64 KiB: it is copied, its strings and
brackets are found, and each long list of numbers in it is parsed into an array and replaced by a string that no client
can guess. The size, the number of values and the depth of the remainder are limited before a parser reads it; a text
that exceeds a limit is rejected in the step where it does.

`restore_lists` puts the lists back into the parsed remainder, as NumberLists, which hold a number in 8 bytes, not 32.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, cast

import numpy as np

from mmsup.ipc.tensors.numpy_arrays import Array

STEP_BYTES: Final = 1 << 16
LONG_BYTES: Final = 256
"""Shortest text of a list that is extracted."""
REMAINDER_LIMIT_BYTES: Final = 4 << 20
"""The remainder, mostly strings; a parser takes 10 ms for so much."""
VALUE_LIMIT: Final = 1 << 17
"""Commas and colons of the remainder; that many object members take 20 ms."""
CONTAINER_LIMIT: Final = 1 << 16
"""Lists and objects of one document: each costs thirty times its own bytes and a third of a microsecond."""
DEPTH_LIMIT: Final = 64
Parse = Callable[[bytes, int], Any]  # a JSON text and its offset; its value
_QUOTE, _LIST, _LIST_END, _BACKSLASH = b'"[]\\'
_PLAIN: Final = re.compile(rb'[^"\[]*+')
_INSIDE: Final = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_FLAT: Final = re.compile(rb'[^"\[\]{}]*+')
DEPTH_STEP: Final = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
NOT_BRACKETS: Final = bytes(set(range(256)) - set(DEPTH_STEP))


@dataclass(frozen=True, slots=True)
class NumberList:
    """A list of numbers or booleans, as consecutive arrays of int64, uint64, float64 or bool."""

    pieces: list[Array]

    def __len__(self) -> int:
        return sum(len(each) for each in self.pieces)

    def tolist(self) -> list[Any]:  # numbers or booleans
        return [value for each in self.pieces for value in each.tolist()]


class LimitExceeded(Exception):  # noqa: N818 - becomes a CallerError
    """The message names the limit."""


def extract_lists(text: memoryview, parse: Parse) -> tuple[bytes, dict[str, NumberList]]:
    """The remainder of a text, and its long lists by the strings that replace them; or LimitExceeded."""
    scanner = _Scanner(text, parse)
    while scanner.step():
        pass
    return b"".join(scanner.remainder), scanner.lists


def restore_lists(value: Any, lists: dict[str, NumberList]) -> Any:  # JSON values, the result with NumberLists
    """Replace the strings of `extract_lists` by their lists."""
    if isinstance(value, str):
        return lists.get(value, value)
    if isinstance(value, list):
        values = cast("list[Any]", value)  # type: ignore[redundant-cast] # pyright needs it
        return [restore_lists(each, lists) if type(each) in (str, list, dict) else each for each in values]
    if isinstance(value, dict):
        members = cast("dict[str, Any]", value)  # as above
        return {key: restore_lists(each, lists) for key, each in members.items()}
    return value


class _Scanner:
    def __init__(self, text: memoryview, parse: Parse) -> None:
        self.remainder: list[bytes] = []
        self.lists: dict[str, NumberList] = {}
        self._text = text
        self._parse = parse
        self._token = secrets.token_hex(16)
        self._start = 0
        self._piece = b""
        self._in_string = False
        self._remainder_bytes = self._values = self._containers = self._depth = 0

    def step(self) -> bool:
        """Scan one piece, which starts where the last one ended; False at the end of the text."""
        self._piece = bytes(self._text[self._start : self._start + STEP_BYTES])
        at = 0
        while at < len(self._piece):
            end = self._inside(at) if self._in_string else self._outside(at)
            if end == at:
                break  # the next piece starts here, so that more of the text is visible
            at = end
        self._start += at
        return self._start < len(self._text)

    @property
    def _is_last(self) -> bool:
        return self._start + len(self._piece) >= len(self._text)

    def _inside(self, at: int) -> int:
        """From inside a string to its end, or to the end of the piece."""
        found = _INSIDE.match(self._piece, at)
        end = found.end() if found else at
        if end < len(self._piece) and self._piece[end] == _QUOTE:
            self._in_string = False
            end += 1
        elif end == at:
            end += self._is_last  # a backslash at the end of the text; otherwise the next piece has what follows it
        self._append(self._piece[at:end])
        return end

    def _outside(self, at: int) -> int:
        first = self._piece[at]
        if first == _QUOTE:
            self._in_string = True
            self._append(b'"')
            return at + 1
        if first == _LIST:
            return self._list(at)
        found = _PLAIN.match(self._piece, at)
        end = found.end() if found else at
        self._count(self._piece[at:end])
        return end

    def _list(self, at: int) -> int:
        """From the opening bracket to the end of a long list of numbers, or to the first other element."""
        found = _FLAT.match(self._piece, at + 1)
        end = found.end() if found else at + 1
        if end == len(self._piece) and not self._is_last and at:
            return at  # so that the next piece starts with the list
        if end == len(self._piece):
            numbers, after = self._streamed(self._start + at + 1)
            if numbers is not None:
                self._replace_list(numbers)
                self._start = after  # the next piece starts there; this one had nothing before the list
                return at
        elif self._piece[end] == _LIST_END and end - at >= LONG_BYTES:
            array = to_number_array(self._parse(self._piece[at : end + 1], self._start + at))
            if array is not None:
                self._replace_list(NumberList([array]))
                return end + 1
        self._count(self._piece[at:end])
        return end

    def _streamed(self, at: int) -> tuple[NumberList | None, int]:
        """The numbers of a list that is longer than a piece, and where it ends; None if it has other elements."""
        pieces: list[Array] = []
        while at < len(self._text):
            piece = bytes(self._text[at : at + STEP_BYTES])
            found = _FLAT.match(piece)
            end = found.end() if found else 0
            closed = end < len(piece) and piece[end] == _LIST_END
            cut = end if closed else piece.rfind(b",") if end == len(piece) else -1
            array = None if cut < 0 else to_number_array(self._parse(b"[" + piece[:cut] + b"]", at - 1))
            if array is None:
                break
            pieces.append(array)
            at += cut + 1
            if closed:
                return NumberList(pieces), at
        return None, at

    def _replace_list(self, numbers: NumberList) -> None:
        key = f"{self._token}{len(self.lists)}"
        self.lists[key] = numbers
        self._containers += 1
        self._append(b'"%b"' % key.encode())

    def _count(self, plain: bytes) -> None:
        """Append text outside of strings, and check the limits."""
        self._append(plain)
        self._values += plain.count(b",") + plain.count(b":")
        if self._values > VALUE_LIMIT:
            what = f"more than {VALUE_LIMIT} values, at most so many are read"
            raise LimitExceeded(f"{what}: send long lists of numbers or binary tensors")
        for each in plain.translate(None, NOT_BRACKETS):
            step = DEPTH_STEP[each]
            self._depth += step
            self._containers += step > 0
            if self._depth > DEPTH_LIMIT:
                raise LimitExceeded(f"nested {self._depth} deep, at most {DEPTH_LIMIT} is read")
        if self._containers > CONTAINER_LIMIT:
            what = f"more than {CONTAINER_LIMIT} lists and objects, at most {CONTAINER_LIMIT} are read"
            raise LimitExceeded(f"{what}: send flat lists or binary tensors")

    def _append(self, part: bytes) -> None:
        self._remainder_bytes += len(part)
        if self._remainder_bytes > REMAINDER_LIMIT_BYTES:
            what = f"more than {REMAINDER_LIMIT_BYTES} bytes besides long lists of numbers"
            raise LimitExceeded(f"{what}: send strings as binary tensors")
        self.remainder.append(part)


def to_number_array(values: list[Any]) -> Array | None:  # JSON values
    """Numbers or booleans as an array; None if there are other elements, or none at all."""
    kinds = set(map(type, values))
    kind: type[Any] = np.float64  # numpy's scalar types
    if kinds == {bool}:
        kind = np.bool_
    elif kinds == {int}:
        kind = np.int64 if max(values) < 1 << 63 else np.uint64
    elif not kinds or not kinds <= {int, float}:
        return None
    try:
        return np.array(values, kind)
    except OverflowError:
        return None
