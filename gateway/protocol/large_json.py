"""A large JSON text gone through once, in small steps: long lists of numbers are cut out, all else is bounded. Pure.

Whatever is done to a text in one call holds the interpreter for as long as it takes, and everyone else waits: a copy of
60 MB for 20 ms, a parse of a megabyte of floats for 12 ms. So nothing is ever done to the whole of a text. A step is
64 KiB: it is copied, its strings and brackets are found, and a long list of numbers in it is parsed and kept as an
array, with a string that no client can guess in its place. What is left, the *rest*, is bounded in bytes, in values and
in depth before a parser meets it; a text that passes a bound is given up in the step where it does.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from typing import Any, Final

from mmsup.gateway.protocol.large_json_runs import NumberList, to_number_array
from mmsup.ipc.tensors.numpy_arrays import Array

STEP_BYTES: Final = 1 << 16
LONG_BYTES: Final = 256
"""Text of a list that is worth cutting out."""
REMAINDER_LIMIT_BYTES: Final = 4 << 20
"""All that is no long list of numbers, strings above all; a parser takes 10 ms for so much."""
VALUE_LIMIT: Final = 1 << 17
"""Commas and colons of the rest; as many members of objects take 20 ms."""
CONTAINER_LIMIT: Final = 1 << 16
"""Lists and objects of one document: each costs us thirty times its own bytes and a third of a microsecond."""
DEPTH_LIMIT: Final = 64
Parse = Callable[[bytes, int], Any]  # JSON text and where it stood; its value
_QUOTE, _LIST, _LIST_END, _BACKSLASH = b'"[]\\'
_PLAIN: Final = re.compile(rb'[^"\[]*+')
_INSIDE: Final = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_FLAT: Final = re.compile(rb'[^"\[\]{}]*+')
_DEPTH_STEP: Final = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_NOT_BRACKETS: Final = bytes(set(range(256)) - set(_DEPTH_STEP))


class LimitExceeded(Exception):  # noqa: N818 - becomes a CallerError
    """Which bound a text passes."""


def extract_lists(text: memoryview, parse: Parse) -> tuple[bytes, dict[str, NumberList]]:
    """The rest of a text, and its long lists by the strings that stand for them; Beyond if it passes a bound."""
    scan = _Scanner(text, parse)
    while scan.step():
        pass
    return b"".join(scan.kept), scan.lists


class _Scanner:
    def __init__(self, text: memoryview, parse: Parse) -> None:
        self.kept: list[bytes] = []
        self.lists: dict[str, NumberList] = {}
        self._text = text
        self._parse = parse
        self._token = secrets.token_hex(16)
        self._start = 0
        self._piece = b""
        self._in_string = False
        self._kept_bytes = self._values = self._containers = self._depth = 0

    def step(self) -> bool:
        """Go through one piece, which begins where the last one ended; False at the end of the text."""
        self._piece = bytes(self._text[self._start : self._start + STEP_BYTES])
        at = 0
        while at < len(self._piece):
            end = self._inside(at) if self._in_string else self._outside(at)
            if end == at:
                break  # the next piece shall begin here, so that more of the text can be seen
            at = end
        self._start += at
        return self._start < len(self._text)

    @property
    def _is_last(self) -> bool:
        return self._start + len(self._piece) >= len(self._text)

    def _inside(self, at: int) -> int:
        """From within a string to its end, or as far as the piece goes."""
        found = _INSIDE.match(self._piece, at)
        end = found.end() if found else at
        if end < len(self._piece) and self._piece[end] == _QUOTE:
            self._in_string = False
            end += 1
        elif end == at:
            end += self._is_last  # a backslash that ends the text; else the next piece has what follows it
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
        """From a list's bracket to its end if it is a long one of numbers, else to whatever else it holds."""
        found = _FLAT.match(self._piece, at + 1)
        end = found.end() if found else at + 1
        if end == len(self._piece) and not self._is_last and at:
            return at  # so that the next piece begins with the list
        whole = end < len(self._piece) and self._piece[end] == _LIST_END
        run = None
        if end == len(self._piece):
            run, after = self._streamed(self._start + at + 1)
            if run is not None:
                self._replace_list(run)
                self._start = after  # the next piece begins there; this one had nothing before the list
                return at
        elif whole and end - at >= LONG_BYTES:
            array = to_number_array(self._parse(self._piece[at : end + 1], self._start + at))
            run = None if array is None else NumberList([array])
        if run is not None:
            self._replace_list(run)
            return end + 1
        self._count(self._piece[at:end])
        return end

    def _streamed(self, at: int) -> tuple[NumberList | None, int]:
        """The numbers of a list that is longer than a piece, and where it ends; None if something else is in it."""
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

    def _replace_list(self, run: NumberList) -> None:
        key = f"{self._token}{len(self.lists)}"
        self.lists[key] = run
        self._containers += 1
        self._append(b'"%b"' % key.encode())

    def _count(self, plain: bytes) -> None:
        """Keep what is in no string."""
        self._append(plain)
        self._values += plain.count(b",") + plain.count(b":")
        if self._values > VALUE_LIMIT:
            what = f"more than {VALUE_LIMIT} values, at most so many are read"
            raise LimitExceeded(f"{what}: send long lists of numbers or binary tensors")
        for each in plain.translate(None, _NOT_BRACKETS):
            step = _DEPTH_STEP[each]
            self._depth += step
            self._containers += step > 0
            if self._depth > DEPTH_LIMIT:
                raise LimitExceeded(f"nested {self._depth} deep, at most {DEPTH_LIMIT} is read")
        if self._containers > CONTAINER_LIMIT:
            what = f"more than {CONTAINER_LIMIT} lists and objects, at most {CONTAINER_LIMIT} are read"
            raise LimitExceeded(f"{what}: send flat lists or binary tensors")

    def _append(self, part: bytes) -> None:
        self._kept_bytes += len(part)
        if self._kept_bytes > REMAINDER_LIMIT_BYTES:
            what = f"more than {REMAINDER_LIMIT_BYTES} bytes besides long lists of numbers"
            raise LimitExceeded(f"{what}: send strings as binary tensors")
        self.kept.append(part)
