"""Long lists of numbers of a JSON text, as arrays. Pure.

scan.py cuts them out of a large text and puts strings in their places; `restore` puts them back as Runs, which hold a
number in 8 bytes, not 32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from mmsup.ipc.tensors.numpy_arrays import Array


@dataclass(frozen=True, slots=True)
class NumberList:
    """A list of numbers or of truth values, as arrays of int64, uint64, float64 or bool that follow one another."""

    pieces: list[Array]

    def __len__(self) -> int:
        return sum(len(each) for each in self.pieces)

    def tolist(self) -> list[Any]:  # numbers or truth values
        """As Python's own values."""
        return [value for each in self.pieces for value in each.tolist()]


def to_number_array(values: list[Any]) -> Array | None:  # JSON values
    """Numbers, or truth values, as an array; None if something else is among them, or nothing."""
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


def restore_lists(value: Any, runs: dict[str, NumberList]) -> Any:  # any JSON value, and the same with Runs in it
    """Put the lists back where their strings stand."""
    if isinstance(value, str):
        return runs.get(value, value)
    if isinstance(value, list):
        values = cast("list[Any]", value)  # type: ignore[redundant-cast] # pyright needs it
        return [restore_lists(each, runs) if type(each) in (str, list, dict) else each for each in values]
    if isinstance(value, dict):
        members = cast("dict[str, Any]", value)  # as above
        return {key: restore_lists(each, runs) for key, each in members.items()}
    return value
