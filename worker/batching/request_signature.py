"""Request signatures (names, datatypes, shapes, parameters), parsed once and cached by their packed bytes. Pure.

Requests with the same batch key may share a batch: they are alike in all but the length of the batch axis.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from mmsup.ipc.bounded_cache import BoundedCache
from mmsup.ipc.messages.data import InferSignature
from mmsup.ipc.specs import TensorSpec
from mmsup.ipc.tensors.datatypes import ITEM_BYTES, size_bytes
from mmsup.ipc.tensors.numpy_arrays import NUMPY
from mmsup.ipc.transport.codec import pack_signature, unpack_infer_signature

SIGNATURES_LIMIT: Final = 1024


@dataclass(frozen=True, slots=True)
class SignatureInput:
    """One input: how its bytes become an array."""

    name: str
    datatype: str
    dtype: np.dtype[Any] | None
    """None for BYTES, whose elements must be parsed one by one."""
    shape: tuple[int, ...]
    size_bytes: int | None
    """None for BYTES."""


class BatchKey:
    """Compared by identity only."""


class RequestSignature:
    __slots__ = ("batch_key", "inputs", "outputs", "parameters", "priority", "rows", "runs_alone")

    def __init__(self, message: InferSignature, batch_key: BatchKey | None) -> None:
        self.inputs = tuple([_input(each) for each in message.inputs])
        self.outputs = message.outputs
        self.parameters = message.parameters
        self.priority = message.priority
        self.runs_alone = message.runs_alone
        """All requests that ran before it are answered before it runs."""
        self.rows = message.inputs[0].shape[0] if message.inputs and message.inputs[0].shape else 1
        """Length of the batch axis, 1 for a request without inputs."""
        self.batch_key = batch_key
        """None: it shares a batch with no other request."""


class RequestSignatureCache:
    """The signatures and batch keys that this worker has seen lately."""

    def __init__(self) -> None:
        self.parsed: BoundedCache[bytes, RequestSignature] = BoundedCache(SIGNATURES_LIMIT)
        self._batch_keys: BoundedCache[bytes, BatchKey] = BoundedCache(SIGNATURES_LIMIT)

    def get(self, packed: bytes) -> RequestSignature:
        """The signature in these bytes; WireError if they are none."""
        signature = self.parsed.get(packed)
        if signature is None:
            message = unpack_infer_signature(packed)
            signature = RequestSignature(message, self._batch_key(message))
            self.parsed.add(packed, signature)
        return signature

    def _batch_key(self, message: InferSignature) -> BatchKey | None:
        if message.runs_alone or not has_common_batch_axis(message):
            return None
        inputs = tuple([TensorSpec(each.name, each.datatype, each.shape[1:]) for each in message.inputs])
        packed = pack_signature(replace(message, inputs=inputs, priority=0))
        batch_key = self._batch_keys.get(packed)
        if batch_key is None:
            batch_key = BatchKey()
            self._batch_keys.add(packed, batch_key)
        return batch_key


def has_common_batch_axis(message: InferSignature) -> bool:
    """Whether the first axis of all inputs has the same length, above 0."""
    rows = message.inputs[0].shape[0] if message.inputs and message.inputs[0].shape else 0
    return rows > 0 and all(each.shape[:1] == (rows,) for each in message.inputs)


def _input(spec: TensorSpec) -> SignatureInput:
    dtype = NUMPY.get(spec.datatype) if ITEM_BYTES.get(spec.datatype) else None
    size = size_bytes(spec.datatype, spec.shape) if dtype is not None else None
    return SignatureInput(spec.name, spec.datatype, dtype, spec.shape, size)
