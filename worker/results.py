"""Outputs on their way to a gateway: small ones in the reply, large ones in memory that it granted. Pure but for the
copy into that memory.

Layout of a grant, which `gateway/sizes.py` computes alike: the large outputs in the order of the reply, each at the
next 64-byte step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mmsup.ipc.allocator import ALIGNMENT
from mmsup.ipc.array import Array, as_bytes
from mmsup.ipc.messages import Tensor
from mmsup.ipc.specs import INLINE_LIMIT_BYTES

Output = tuple[str, str, tuple[int, ...], bytes | memoryview]
"""Name, datatype, shape, bytes."""


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


def place(outputs: Sequence[Output], view: memoryview | None, segment: int, offset: int) -> tuple[Tensor, ...]:
    """The tensors of the reply, with the large ones copied into `view`, which lies at `offset` of `segment`."""
    tensors: list[Tensor] = []
    at = 0
    for name, datatype, shape, data in outputs:
        size = len(data)
        if size <= INLINE_LIMIT_BYTES:
            tensors.append(Tensor(name, datatype, shape, -1, 0, size, data))
            continue
        assert view is not None, "outputs beyond the inline limit need a grant"
        view[at : at + size] = data
        tensors.append(Tensor(name, datatype, shape, segment, offset + at, size))
        at += _padded(size)
    return tuple(tensors)


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
