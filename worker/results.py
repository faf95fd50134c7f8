"""Outputs on their way to a gateway: small ones in the reply, large ones in memory that it granted. Pure but for the
copy into that memory.

Layout of a grant, which `gateway/sizes.py` computes alike: the large outputs in the order of the reply, each at the
next 64-byte step. `lay_out` offers an engine its room by that layout before the run, `place` finds what lies there
already after it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from mmsup.ipc.allocator import ALIGNMENT
from mmsup.ipc.array import NUMPY, Array, as_bytes
from mmsup.ipc.messages import Tensor
from mmsup.ipc.specs import INLINE_LIMIT_BYTES
from mmsup.ipc.tensor import size_bytes

Output = tuple[str, str, tuple[int, ...], bytes | memoryview]
"""Name, datatype, shape, bytes."""
Foreseen = tuple[str, str, tuple[int, ...]]
"""The same before the run."""
LOOK_BYTES: Final = 64 << 10
"""From here on, asking two addresses (2 microseconds) is cheaper than a copy onto itself."""


def outputs_of(arrays: Mapping[str, Array], datatypes: Mapping[str, str]) -> tuple[Output, ...]:
    """The bytes of each array, whose datatype has been checked; large ones without a copy where they lie in one
    piece."""
    return tuple([(name, datatypes[name], each.shape, _bytes(each)) for name, each in arrays.items()])


def _bytes(array: Array) -> bytes | memoryview:
    if array.nbytes <= INLINE_LIMIT_BYTES and not array.dtype.hasobject and array.dtype.kind not in "SU":
        return array.tobytes()  # a fifth of the time that a view takes
    return as_bytes(array)


def room(outputs: Sequence[Output]) -> int:
    """Bytes of grant that these outputs need; 0 if all travel in the reply."""
    need = 0
    for output in outputs:
        size = len(output[3])
        if size > INLINE_LIMIT_BYTES:
            need += _padded(size)
    return need


def lay_out(foreseen: Sequence[Foreseen], view: memoryview) -> dict[str, Array]:
    """The room of each large output in the memory of a grant, as far as that reaches. What comes after an output of
    unknown size (BYTES) has no known place."""
    rooms: dict[str, Array] = {}
    at = 0
    for name, datatype, shape in foreseen:
        size = size_bytes(datatype, shape)
        if size is None or at + size > len(view):
            break
        if size > INLINE_LIMIT_BYTES:
            rooms[name] = np.frombuffer(view[at : at + size], NUMPY[datatype]).reshape(shape)
            at += _padded(size)
    return rooms


def place(outputs: Sequence[Output], view: memoryview | None, segment: int, offset: int) -> tuple[Tensor, ...]:
    """The tensors of the reply, with the large ones in `view`, which lies at `offset` of `segment`: copied there,
    unless they were made there."""
    large = [len(output[3]) for output in outputs if len(output[3]) > INLINE_LIMIT_BYTES]
    if len(large) > 1 and view is not None:
        outputs = _settled(outputs, view)
    tensors: list[Tensor] = []
    at = 0
    for name, datatype, shape, data in outputs:
        size = len(data)
        if size <= INLINE_LIMIT_BYTES:
            tensors.append(Tensor(name, datatype, shape, -1, 0, size, data))
            continue
        assert view is not None, "outputs beyond the inline limit need a grant"
        target = view[at : at + size]
        if size < LOOK_BYTES or _address(data) != _address(target):
            target[:] = data
        tensors.append(Tensor(name, datatype, shape, segment, offset + at, size))
        at += _padded(size)
    return tuple(tensors)


def _settled(outputs: Sequence[Output], view: memoryview) -> Sequence[Output]:
    """The outputs, none of them where another will be copied to: one that was made larger than foreseen moves all
    that come after it, and what lies there is then taken out first."""
    first = _address(view)
    settled: list[Output] = []
    at = 0
    for name, datatype, shape, data in outputs:
        size = len(data)
        if size <= INLINE_LIMIT_BYTES:
            settled.append((name, datatype, shape, data))
            continue
        lies = _address(data) - first
        moves = 0 <= lies < len(view) and lies != at
        settled.append((name, datatype, shape, bytes(data) if moves else data))
        at += _padded(size)
    return settled


def _address(data: bytes | memoryview) -> int:
    return np.frombuffer(data, np.uint8).ctypes.data


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
