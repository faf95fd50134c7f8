"""What requests of the same words have in common, as this worker reads it: once, whatever their number. Pure.

Requests of one group may share a run: they are alike in all but the length of the batch axis.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from mmsup.ipc.messages.data import InferSignature
from mmsup.ipc.specs import TensorSpec
from mmsup.ipc.tensors.datatypes import ITEM_BYTES, size_bytes
from mmsup.ipc.tensors.numpy_arrays import NUMPY
from mmsup.ipc.transport.codec import pack_signature, unpack_infer_signature
from mmsup.ipc.two_generation_cache import BoundedCache

SIGNATURES_LIMIT: Final = 1024


@dataclass(frozen=True, slots=True)
class SignatureInput:
    """One input: how its bytes become an array."""

    name: str
    datatype: str
    dtype: np.dtype[Any] | None
    """None for BYTES, whose elements must be read one by one."""
    shape: tuple[int, ...]
    size: int | None
    """Bytes; None for BYTES."""


class BatchKey:
    """Requests that may share a run. What it is does not matter, only whether it is the same."""


class RequestSignature:
    """Of a request."""

    __slots__ = ("alone", "group", "inputs", "outputs", "priority", "rows")

    def __init__(self, form: InferSignature, group: BatchKey | None) -> None:
        self.inputs = tuple([_input(each) for each in form.inputs])
        self.outputs = form.outputs
        self.priority = form.priority
        self.alone = form.runs_alone
        """What ran before it is answered before it runs."""
        self.rows = form.inputs[0].shape[0] if form.inputs and form.inputs[0].shape else 1
        """Length of the batch axis, 1 for a request without inputs."""
        self.group = group
        """None: it runs alone."""


class RequestSignatureCache:
    """All that a worker knows."""

    def __init__(self) -> None:
        self._signatures: BoundedCache[bytes, RequestSignature] = BoundedCache(SIGNATURES_LIMIT)
        self._batch_keys: BoundedCache[bytes, BatchKey] = BoundedCache(SIGNATURES_LIMIT)

    def get(self, words: bytes) -> RequestSignature:
        """The kind that these words name; WireError if they are none."""
        kind = self._signatures.recent.get(words) or self._signatures.get(words)
        if kind is None:
            form = unpack_infer_signature(words)
            kind = RequestSignature(form, self._batch_key(form))
            self._signatures.add(words, kind)
        return kind

    def _batch_key(self, form: InferSignature) -> BatchKey | None:
        if form.runs_alone or not has_common_batch_axis(form):
            return None
        inputs = tuple([TensorSpec(each.name, each.datatype, each.shape[1:]) for each in form.inputs])
        key = pack_signature(replace(form, inputs=inputs, priority=0))
        group = self._batch_keys.get(key)
        if group is None:
            group = BatchKey()
            self._batch_keys.add(key, group)
        return group


def has_common_batch_axis(form: InferSignature) -> bool:
    """Whether all inputs have the same, non-empty batch axis."""
    first = form.inputs[0].shape[0] if form.inputs and form.inputs[0].shape else 0
    for each in form.inputs:
        if not each.shape or each.shape[0] != first:
            return False
    return first > 0


def _input(spec: TensorSpec) -> SignatureInput:
    dtype = NUMPY.get(spec.datatype) if ITEM_BYTES.get(spec.datatype) else None
    size = size_bytes(spec.datatype, spec.shape) if dtype is not None else None
    return SignatureInput(spec.name, spec.datatype, dtype, spec.shape, size)
