"""Stacks the arrays of several requests into one batch, and splits a batch again, along the first axis. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mmsup.ipc.tensors.numpy_arrays import Array

Arrays = dict[str, Array]
"""Of one request, by the name of the tensor."""


def rows(arrays: Mapping[str, Array]) -> int:
    """Length of the batch axis, 1 where there is none."""
    for array in arrays.values():
        return int(array.shape[0]) if array.ndim else 1
    return 1


def size_bytes(arrays: Mapping[str, Array]) -> int:
    """Of all arrays together."""
    return sum([array.nbytes for array in arrays.values()])


def stack(parts: Sequence[Mapping[str, Array]]) -> Arrays:
    """One batch of parts with the same names."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def split(batch: Mapping[str, Array], sizes: Sequence[int]) -> list[Arrays]:
    """Views of a batch, one for each number of rows in `sizes`, which add up to the batch axis."""
    parts: list[Arrays] = []
    start = 0
    for size in sizes:
        parts.append({name: array[start : start + size] for name, array in batch.items()})
        start += size
    return parts
