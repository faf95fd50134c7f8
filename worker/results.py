"""Outputs on their way to a gateway: small ones in the reply, large ones in memory that it granted. Pure but for the
copy into that memory.

Layout of a grant, which `gateway/sizes.py` computes alike: the large outputs in the order of the reply, each at the
next 64-byte step.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmsup.ipc.allocator import ALIGNMENT
from mmsup.ipc.array import as_bytes, datatype_of
from mmsup.ipc.messages import Tensor
from mmsup.ipc.specs import INLINE_LIMIT_BYTES
from mmsup.worker.gather import Arrays

Output = tuple[str, str, tuple[int, ...], bytes | memoryview]
"""Name, datatype, shape, bytes."""


def outputs_of(arrays: Arrays) -> tuple[Output, ...]:
    """The bytes of each array, without a copy where it lies in one piece."""
    return tuple([(name, datatype_of(each) or "", each.shape, as_bytes(each)) for name, each in arrays.items()])


def room(outputs: Sequence[Output]) -> int:
    """Bytes of grant that these outputs need; 0 if all travel in the reply."""
    return sum([_padded(len(data)) for _, _, _, data in outputs if len(data) > INLINE_LIMIT_BYTES])


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
