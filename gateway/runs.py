"""Long lists of numbers in a large JSON text, read a piece at a time. Pure.

A parser holds the interpreter for as long as it runs, and everyone else waits: 12 ms for a megabyte of floats. So the
long lists are cut out of a large text first (`lift`) and parsed in pieces, between which other threads have their turn;
what is left is small. The values go back to their places as Runs (`restore`), which hold a number in 8 bytes, not 32.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, cast

import numpy as np

from mmsup.ipc.array import Array

LONG_BYTES: Final = 256
"""Text of a list that is worth cutting out."""
PIECE_BYTES: Final = 1 << 17
Parse = Callable[[bytes, int], Any]  # JSON text and where it stood; its value


@dataclass(frozen=True, slots=True)
class Run:
    """A list of numbers or of truth values, as arrays of int64, uint64, float64 or bool that follow one another."""

    pieces: list[Array]

    def __len__(self) -> int:
        return sum(len(each) for each in self.pieces)

    def tolist(self) -> list[Any]:  # numbers or truth values
        """As Python's own values."""
        return [value for each in self.pieces for value in each.tolist()]


def lift(raw: bytes, parse: Parse) -> tuple[bytes, dict[str, Run]]:
    """The text with its long lists replaced by strings that no client can guess, and the lists by these strings."""
    if b"\\" in raw:
        return raw, {}  # quotes cannot be counted then, so it cannot be told what is within a string
    token = secrets.token_hex(16)
    runs: dict[str, Run] = {}
    kept: list[bytes] = []
    at = quotes = counted = 0
    start = raw.find(b"[")
    while start >= 0 and (end := raw.find(b"]", start)) >= 0:
        start = raw.rfind(b"[", start, end)
        if end - start >= LONG_BYTES and not _holds_more(raw, start, end):
            quotes += raw.count(b'"', counted, start)
            counted = start
            run = _run(raw, start + 1, end, parse) if quotes % 2 == 0 else None
            if run is not None:
                key = f"{token}{len(runs)}"
                runs[key] = run
                kept += (raw[at:start], b'"', key.encode(), b'"')
                at = end + 1
        start = raw.find(b"[", end)
    kept.append(raw[at:])
    return b"".join(kept), runs


def _holds_more(raw: bytes, start: int, end: int) -> bool:
    return raw.find(b'"', start, end) >= 0 or raw.find(b"{", start, end) >= 0


def _run(raw: bytes, at: int, end: int, parse: Parse) -> Run | None:
    """The numbers in `raw[at:end]`; None if something else is among them."""
    pieces: list[Array] = []
    while True:
        cut = end if end - at <= PIECE_BYTES else raw.rfind(b",", at, at + PIECE_BYTES)
        if cut < 0:
            return None
        piece = _array(parse(b"[" + raw[at:cut] + b"]", at - 1))
        if piece is None:
            return None
        pieces.append(piece)
        if cut == end:
            return Run(pieces)
        at = cut + 1


def _array(values: list[Any]) -> Array | None:  # JSON values
    kinds = set(map(type, values))
    if kinds == {bool}:
        return np.array(values, np.bool_)
    if kinds == {int}:
        kind: type[Any] = np.int64 if max(values) < 1 << 63 else np.uint64  # numpy's scalar types
        try:
            return np.array(values, kind)
        except OverflowError:
            return None
    if kinds and kinds <= {int, float}:
        try:
            return np.array(values, np.float64)
        except OverflowError:
            return None
    return None


def restore(value: Any, runs: dict[str, Run]) -> Any:  # any JSON value, and the same with Runs in it
    """Put the lists back where their strings stand."""
    if isinstance(value, str):
        return runs.get(value, value)
    if isinstance(value, list):
        values = cast("list[Any]", value)  # type: ignore[redundant-cast] # pyright needs it
        return [restore(each, runs) if type(each) in (str, list, dict) else each for each in values]
    if isinstance(value, dict):
        members = cast("dict[str, Any]", value)  # as above
        return {key: restore(each, runs) for key, each in members.items()}
    return value
