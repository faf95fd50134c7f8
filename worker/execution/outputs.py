"""Outputs on their way to a gateway: small ones in the reply, large ones in memory that it granted. Pure but for the
copy into that memory.

Layout of a grant, which `gateway/protocol/output_sizes.py` computes alike: the large outputs in the order of the
reply, each at the next 64-byte step. `lay_out` offers an engine its room by that layout before the run, `place` finds
what lies there already after it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from mmsup.ipc.memory.allocator import ALIGNMENT
from mmsup.ipc.messages.data import ReplySignature, TensorLocation
from mmsup.ipc.specs import INLINE_LIMIT_BYTES, INLINE_TENSORS, TensorSpec
from mmsup.ipc.tensors.datatypes import size_bytes
from mmsup.ipc.tensors.numpy_arrays import NUMPY, Array, as_bytes
from mmsup.ipc.transport.codec import pack_signature
from mmsup.ipc.two_generation_cache import BoundedCache

SIGNATURES_LIMIT: Final = 1024

Shape = tuple[int, ...]
OutputBytes = tuple[str, Shape, bytes | memoryview]
"""Name, shape, bytes."""
PredictedOutput = tuple[str, str, Shape]
"""Name, datatype and shape of an output before the run."""
ADDRESS_CHECK_BYTES: Final = 64 << 10
"""From here on, asking two addresses (2 microseconds) is cheaper than a copy onto itself."""


def encode_outputs(arrays: Mapping[str, Array]) -> tuple[OutputBytes, ...]:
    """The bytes of each array, whose datatype has been checked; large ones without a copy where they lie in one
    piece."""
    return tuple([(name, each.shape, _bytes(each)) for name, each in arrays.items()])


def _bytes(array: Array) -> bytes | memoryview:
    if array.nbytes <= INLINE_LIMIT_BYTES and array.dtype.kind not in "OSU":
        return array.tobytes()  # a fifth of the time that a view takes
    return as_bytes(array)


class ReplySignatureCache:
    """The words of results, packed once for all that look alike."""

    def __init__(self, datatypes: Mapping[str, str]) -> None:
        self._datatypes = datatypes
        self._known: BoundedCache[tuple[tuple[str, Shape], ...], bytes] = BoundedCache(SIGNATURES_LIMIT)

    def inline_reply(self, arrays: Mapping[str, Array]) -> tuple[bytes, tuple[bytes, ...]] | None:
        """The words and the bytes of outputs that are few, small and of numbers; None if they are not."""
        shapes: list[tuple[str, Shape]] = []
        data: list[bytes] = []
        for name, array in arrays.items():
            if array.nbytes > INLINE_LIMIT_BYTES or array.dtype.kind in "OSU":
                return None
            shapes.append((name, array.shape))
            data.append(array.tobytes())
        return (self._signature(tuple(shapes)), tuple(data)) if len(data) <= INLINE_TENSORS else None

    def signature(self, outputs: Sequence[OutputBytes]) -> bytes:
        """What the reply with these outputs says of them."""
        return self._signature(tuple([(name, shape) for name, shape, _ in outputs]))

    def _signature(self, key: tuple[tuple[str, Shape], ...]) -> bytes:
        words = self._known.recent.get(key) or self._known.get(key)
        if words is None:
            specs = [TensorSpec(name, self._datatypes[name], shape) for name, shape in key]
            words = pack_signature(ReplySignature(tuple(specs)))
            self._known.add(key, words)
        return words


def buffer_bytes(outputs: Sequence[OutputBytes]) -> int:
    """Bytes of grant that these outputs need; 0 if all travel in the reply."""
    need = inline = 0
    for output in outputs:
        size = len(output[2])
        if is_inline(size, inline):
            inline += 1
        else:
            need += padded(size)
    return need


def output_buffers(foreseen: Sequence[PredictedOutput], view: memoryview) -> dict[str, Array]:
    """The room of each large output in the memory of a grant, as far as that reaches. What comes after an output of
    unknown size (BYTES) has no known place."""
    rooms: dict[str, Array] = {}
    at = inline = 0
    for name, datatype, shape in foreseen:
        size = size_bytes(datatype, shape)
        if size is None or at + size > len(view):
            break
        if is_inline(size, inline):
            inline += 1
            continue
        rooms[name] = np.frombuffer(view[at : at + size], NUMPY[datatype]).reshape(shape)
        at += padded(size)
    return rooms


def is_inline(size: int, inline: int) -> bool:
    """Whether an output of so many bytes travels in the reply, after so many others that do."""
    return size <= INLINE_LIMIT_BYTES and inline < INLINE_TENSORS


def place_outputs(
    outputs: Sequence[OutputBytes], view: memoryview | None, segment: int, offset: int
) -> tuple[TensorLocation, ...]:
    """Where the reply says that the outputs are: the large ones in `view`, which lies at `offset` of `segment`; copied
    there, unless they were made there."""
    if view is None:
        return tuple([data for _, _, data in outputs])
    if len(outputs) > 1:
        outputs = _without_overlap(outputs, view)
    places: list[TensorLocation] = []
    at = inline = 0
    for _, _, data in outputs:
        size = len(data)
        if is_inline(size, inline):
            places.append(data)
            inline += 1
            continue
        target = view[at : at + size]
        if size < ADDRESS_CHECK_BYTES or _address(data) != _address(target):
            target[:] = data
        places.append((segment, offset + at, size))
        at += padded(size)
    return tuple(places)


def _without_overlap(outputs: Sequence[OutputBytes], view: memoryview) -> Sequence[OutputBytes]:
    """The outputs, none of them where another will be copied to: one that was made larger than foreseen moves all
    that come after it, and what lies there is then taken out first."""
    first = _address(view)
    settled: list[OutputBytes] = []
    at = inline = 0
    for name, shape, data in outputs:
        size = len(data)
        if is_inline(size, inline):
            settled.append((name, shape, data))
            inline += 1
            continue
        lies = _address(data) - first
        moves = 0 <= lies < len(view) and lies != at
        settled.append((name, shape, bytes(data) if moves else data))
        at += padded(size)
    return settled


def _address(data: bytes | memoryview) -> int:
    return np.frombuffer(data, np.uint8).ctypes.data


def padded(size: int) -> int:
    """Bytes that an output takes in its grant."""
    return -(-size // ALIGNMENT) * ALIGNMENT
