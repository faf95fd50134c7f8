"""Encodes outputs for a reply: small ones inline, large ones in the buffer that the gateway granted. Pure but for the
copy into that buffer.

Layout of a buffer, which gateway/protocol/output_sizes.py computes alike: the large outputs in the order of the reply,
each at the next multiple of 64 bytes. `lay_out_buffers` gives an engine its arrays by that layout before the run;
`place_outputs` finds after it which outputs are in their place already.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from mmsup.ipc.bounded_cache import BoundedCache
from mmsup.ipc.memory.allocator import padded_size
from mmsup.ipc.messages.data import ReplySignature, TensorLocation
from mmsup.ipc.specs import INLINE_LIMIT_BYTES, INLINE_TENSORS, TensorSpec, is_inline
from mmsup.ipc.tensors.datatypes import size_bytes
from mmsup.ipc.tensors.numpy_arrays import NUMPY, Array, as_bytes
from mmsup.ipc.transport.codec import pack_signature

SIGNATURES_LIMIT: Final = 1024
ADDRESS_CHECK_BYTES: Final = 64 << 10
"""From here on, comparing two addresses (2 microseconds) is cheaper than a copy onto itself."""

Shape = tuple[int, ...]
OutputBytes = tuple[str, Shape, bytes | memoryview]
"""Name, shape, bytes."""
InlineReply = tuple[bytes, tuple[bytes, ...]]
"""Signature, and the bytes of each output."""
PredictedOutput = tuple[str, str, Shape]
"""Name, datatype and shape of an output before the run."""


def encode_outputs(arrays: Mapping[str, Array]) -> tuple[OutputBytes, ...]:
    """The bytes of each array, whose datatype has been checked; large contiguous ones without a copy."""
    return tuple([(name, each.shape, _bytes(each)) for name, each in arrays.items()])


def _bytes(array: Array) -> bytes | memoryview:
    if array.nbytes <= INLINE_LIMIT_BYTES and array.dtype.kind not in "OSU":
        return array.tobytes()  # a fifth of the time that a view takes
    return as_bytes(array)


class ReplySignatureCache:
    """The signatures of results (names, datatypes, shapes), packed once for all that are alike."""

    def __init__(self, datatypes: Mapping[str, str]) -> None:
        self._datatypes = datatypes
        self._packed: BoundedCache[tuple[tuple[str, Shape], ...], bytes] = BoundedCache(SIGNATURES_LIMIT)

    def inline_reply(self, arrays: Mapping[str, Array]) -> InlineReply | None:
        """Signature and bytes of outputs that all travel in the reply; None if one is large, or no plain number."""
        shapes: list[tuple[str, Shape]] = []
        data: list[bytes] = []
        for name, array in arrays.items():
            if array.nbytes > INLINE_LIMIT_BYTES or array.dtype.kind in "OSU":
                return None
            shapes.append((name, array.shape))
            data.append(array.tobytes())
        return (self._signature(tuple(shapes)), tuple(data)) if len(data) <= INLINE_TENSORS else None

    def inline_parts(self, arrays: Mapping[str, Array], sizes: Sequence[int]) -> list[InlineReply] | None:
        """The same for each part of a batch, of so many rows along the first axis; None if any part is not of this
        kind."""
        rows, largest = sum(sizes), max(sizes)
        columns: list[list[bytes]] = []
        for array in arrays.values():
            shape = array.shape
            if array.dtype.kind in "OSU" or not shape or shape[0] != rows:
                return None
            row_bytes = array.nbytes // rows
            if row_bytes * largest > INLINE_LIMIT_BYTES:
                return None
            columns.append(slices(array.tobytes(), row_bytes, sizes))
        if not 0 < len(columns) <= INLINE_TENSORS:
            return None
        shapes = [(name, array.shape[1:]) for name, array in arrays.items()]
        words = {size: self._signature(tuple([(name, (size, *rest)) for name, rest in shapes])) for size in {*sizes}}
        return [(words[size], data) for size, data in zip(sizes, zip(*columns, strict=True), strict=True)]

    def signature(self, outputs: Sequence[OutputBytes]) -> bytes:
        return self._signature(tuple([(name, shape) for name, shape, _ in outputs]))

    def _signature(self, key: tuple[tuple[str, Shape], ...]) -> bytes:
        packed = self._packed.recent.get(key) or self._packed.get(key)
        if packed is None:
            specs = [TensorSpec(name, self._datatypes[name], shape) for name, shape in key]
            packed = pack_signature(ReplySignature(tuple(specs)))
            self._packed.add(key, packed)
        return packed


def slices(data: bytes, row_bytes: int, sizes: Sequence[int]) -> list[bytes]:
    """The bytes of parts of so many rows each."""
    parts: list[bytes] = []
    start = 0
    for size in sizes:
        end = start + size * row_bytes
        parts.append(data[start:end])
        start = end
    return parts


def buffer_bytes(outputs: Sequence[OutputBytes]) -> int:
    """Size of the buffer that these outputs need; 0 if all travel in the reply."""
    needed = inline = 0
    for _, _, data in outputs:
        if is_inline(len(data), inline):
            inline += 1
        else:
            needed += padded_size(len(data))
    return needed


def lay_out_buffers(predicted: Sequence[PredictedOutput], view: memoryview) -> dict[str, Array]:
    """An array for each large output in the granted buffer `view`, as far as that reaches. What follows an output of
    unknown size (BYTES) has no known place."""
    arrays: dict[str, Array] = {}
    at = inline = 0
    for name, datatype, shape in predicted:
        size = size_bytes(datatype, shape)
        if size is None or at + size > len(view):
            break
        if is_inline(size, inline):
            inline += 1
            continue
        arrays[name] = np.frombuffer(view[at : at + size], NUMPY[datatype]).reshape(shape)
        at += padded_size(size)
    return arrays


def place_outputs(
    outputs: Sequence[OutputBytes], view: memoryview | None, segment: int, offset: int
) -> tuple[TensorLocation, ...]:
    """Copy large outputs into `view`, which is at `offset` of `segment`, unless they are there already; returns the
    location of each output."""
    if view is None:
        return tuple([data for _, _, data in outputs])
    if len(outputs) > 1:
        outputs = _without_overlap(outputs, view)
    locations: list[TensorLocation] = []
    at = inline = 0
    for _, _, data in outputs:
        size = len(data)
        if is_inline(size, inline):
            locations.append(data)
            inline += 1
            continue
        target = view[at : at + size]
        if size < ADDRESS_CHECK_BYTES or _address(data) != _address(target):
            target[:] = data
        locations.append((segment, offset + at, size))
        at += padded_size(size)
    return tuple(locations)


def _without_overlap(outputs: Sequence[OutputBytes], view: memoryview) -> Sequence[OutputBytes]:
    """The outputs, none of them where another will be copied to: one that is larger than predicted moves all that
    follow it, and those that are in the buffer are copied out of it first."""
    first = _address(view)
    safe: list[OutputBytes] = []
    at = inline = 0
    for name, shape, data in outputs:
        size = len(data)
        if is_inline(size, inline):
            safe.append((name, shape, data))
            inline += 1
            continue
        position = _address(data) - first
        moves = 0 <= position < len(view) and position != at
        safe.append((name, shape, bytes(data) if moves else data))
        at += padded_size(size)
    return safe


def _address(data: bytes | memoryview) -> int:
    return np.frombuffer(data, np.uint8).ctypes.data
