"""Sequences and maps of ONNX as tensors: what a ZipMap gives is one row for each map and one column for each class, a
sequence of tensors of one shape is a tensor with one more axis in front. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from mmsup.ipc.tensors.numpy_arrays import Array

_MAPS: Final = re.compile(r"seq\(map\((?:int64|string),(tensor\((?:float|double)\))\)\)")
_TENSORS: Final = re.compile(r"seq\((tensor\(\w+\))\)")


def element_of_maps(node_type: str) -> str:
    """`tensor(float)` of `seq(map(int64,tensor(float)))`, which a ZipMap gives; empty for any other type."""
    found = _MAPS.fullmatch(node_type)
    return found[1] if found else ""


def element_of_sequence(node_type: str) -> str:
    """`tensor(float)` of `seq(tensor(float))`; empty for any other type."""
    found = _TENSORS.fullmatch(node_type)
    return found[1] if found else ""


def columns_of(maps: Sequence[Mapping[Any, Any]], labels: Sequence[Any], dtype: np.dtype[Any]) -> Array:
    """The values of maps that all have the same keys, of shape [maps, keys]; columns in the order of `labels`, or of
    the keys where there are none. ValueError if the keys differ."""
    keys = list(labels) or sorted(maps[0] if maps else ())
    if any(len(each) != len(keys) for each in maps):
        raise ValueError("the maps that it gave differ in their keys, so they are no tensor")
    try:
        rows = [[each[key] for key in keys] for each in maps]
    except KeyError as error:
        raise ValueError(f"a map that it gave has no key {error}") from None
    return np.array(rows, dtype=dtype).reshape(len(maps), len(keys))


def stacked(arrays: Sequence[Array], element_shape: Sequence[int], dtype: np.dtype[Any]) -> Array:
    """A sequence as one tensor, of shape [length, *element]. ValueError if the elements differ in shape."""
    if not arrays:
        return np.empty((0, *(max(each, 0) for each in element_shape)), dtype=dtype)
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1:
        shown = " and ".join(str(list(each)) for each in sorted(shapes)[:2])
        raise ValueError(f"the sequence that it gave holds tensors of shapes {shown}, which cannot be stacked")
    return np.stack(arrays)


def elements(array: Array) -> list[Array]:
    """A tensor as the sequence of what lies along its first axis. ValueError for rank 0."""
    if not array.ndim:
        raise ValueError("a sequence needs at least one axis")
    return [np.asarray(each, dtype=array.dtype) for each in array]


@dataclass(frozen=True, slots=True)
class SequenceTensors:
    """Which inputs and outputs of a graph are sequences, and how their tensors are made."""

    inputs: frozenset[str]
    maps: Mapping[str, tuple[Sequence[Any], np.dtype[Any]]]
    """Labels (str or int) and dtype of each output that is a sequence of maps."""
    sequences: Mapping[str, tuple[Sequence[int], np.dtype[Any]]]
    """Element shape and dtype of each output that is a sequence of tensors."""

    def feeds(self, inputs: Mapping[str, Array]) -> dict[str, Any]:
        return {name: elements(array) if name in self.inputs else array for name, array in inputs.items()}

    def tensors(self, results: Mapping[str, Any]) -> dict[str, Array]:
        made: dict[str, Array] = {}
        for name, result in results.items():
            if name in self.maps:
                made[name] = columns_of(result, *self.maps[name])
            elif name in self.sequences:
                made[name] = stacked(result, *self.sequences[name])
            else:
                made[name] = result
        return made
