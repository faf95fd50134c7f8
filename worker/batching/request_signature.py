"""What requests of the same words have in common, as this worker reads it: once, whatever their number. Pure.

Requests of one group may share a run: they are alike in all but the length of the batch axis.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from mmsup.ipc.messages.data import Form
from mmsup.ipc.specs import TensorSpec
from mmsup.ipc.tensors.datatypes import ITEM_BYTES, size_bytes
from mmsup.ipc.tensors.numpy_arrays import NUMPY
from mmsup.ipc.transport.codec import pack_words, unpack_form
from mmsup.ipc.two_generation_cache import Halves

KINDS_LIMIT: Final = 1024


@dataclass(frozen=True, slots=True)
class Input:
    """One input: how its bytes become an array."""

    name: str
    datatype: str
    dtype: np.dtype[Any] | None
    """None for BYTES, whose elements must be read one by one."""
    shape: tuple[int, ...]
    size: int | None
    """Bytes; None for BYTES."""


class Group:
    """Requests that may share a run. What it is does not matter, only whether it is the same."""


class Kind:
    """Of a request."""

    __slots__ = ("alone", "group", "inputs", "outputs", "priority", "rows")

    def __init__(self, form: Form, group: Group | None) -> None:
        self.inputs = tuple([_input(each) for each in form.inputs])
        self.outputs = form.outputs
        self.priority = form.priority
        self.alone = form.alone
        """What ran before it is answered before it runs."""
        self.rows = form.inputs[0].shape[0] if form.inputs and form.inputs[0].shape else 1
        """Length of the batch axis, 1 for a request without inputs."""
        self.group = group
        """None: it runs alone."""


class Kinds:
    """All that a worker knows."""

    def __init__(self) -> None:
        self._known: Halves[bytes, Kind] = Halves(KINDS_LIMIT)
        self._groups: Halves[bytes, Group] = Halves(KINDS_LIMIT)

    def of(self, words: bytes) -> Kind:
        """The kind that these words name; WireError if they are none."""
        kind = self._known.young.get(words) or self._known.get(words)
        if kind is None:
            form = unpack_form(words)
            kind = Kind(form, self._group(form))
            self._known.put(words, kind)
        return kind

    def _group(self, form: Form) -> Group | None:
        if form.alone or not is_regular(form):
            return None
        inputs = tuple([TensorSpec(each.name, each.datatype, each.shape[1:]) for each in form.inputs])
        key = pack_words(replace(form, inputs=inputs, priority=0))
        group = self._groups.get(key)
        if group is None:
            group = Group()
            self._groups.put(key, group)
        return group


def is_regular(form: Form) -> bool:
    """Whether all inputs have the same, non-empty batch axis."""
    first = form.inputs[0].shape[0] if form.inputs and form.inputs[0].shape else 0
    for each in form.inputs:
        if not each.shape or each.shape[0] != first:
            return False
    return first > 0


def _input(spec: TensorSpec) -> Input:
    dtype = NUMPY.get(spec.datatype) if ITEM_BYTES.get(spec.datatype) else None
    size = size_bytes(spec.datatype, spec.shape) if dtype is not None else None
    return Input(spec.name, spec.datatype, dtype, spec.shape, size)
