"""Outputs on their way to a gateway: small ones in the reply, large ones in memory that it granted. Pure but for the
copy into that memory.

Layout of a grant, which `gateway/sizes.py` computes alike: the large outputs in the order of the reply, each at the
next 64-byte step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from mmsup.ipc.allocator import ALIGNMENT
from mmsup.ipc.array import Array, as_bytes
from mmsup.ipc.codec import pack_words
from mmsup.ipc.halves import Halves
from mmsup.ipc.messages import Outline, Place
from mmsup.ipc.specs import INLINE_LIMIT_BYTES, INLINE_TENSORS, TensorSpec

OUTLINES_LIMIT: Final = 1024

Output = tuple[str, tuple[int, ...], bytes | memoryview]
"""Name, shape, bytes."""


def outputs_of(arrays: Mapping[str, Array]) -> tuple[Output, ...]:
    """The bytes of each array, whose datatype has been checked; large ones without a copy where they lie in one
    piece."""
    return tuple([(name, each.shape, _bytes(each)) for name, each in arrays.items()])


def _bytes(array: Array) -> bytes | memoryview:
    if array.nbytes <= INLINE_LIMIT_BYTES and array.dtype.kind not in "OSU":
        return array.tobytes()  # a fifth of the time that a view takes
    return as_bytes(array)


class Outlines:
    """The words of results, packed once for all that look alike."""

    def __init__(self, datatypes: Mapping[str, str]) -> None:
        self._datatypes = datatypes
        self._known: Halves[tuple[tuple[str, tuple[int, ...]], ...], bytes] = Halves(OUTLINES_LIMIT)

    def words(self, outputs: Sequence[Output]) -> bytes:
        """What the reply with these outputs says of them."""
        key = tuple([(name, shape) for name, shape, _ in outputs])
        words = self._known.get(key)
        if words is None:
            specs = [TensorSpec(name, self._datatypes[name], shape) for name, shape in key]
            words = pack_words(Outline(tuple(specs)))
            self._known.put(key, words)
        return words


def room(outputs: Sequence[Output]) -> int:
    """Bytes of grant that these outputs need; 0 if all travel in the reply."""
    need = inline = 0
    for output in outputs:
        size = len(output[2])
        if size > INLINE_LIMIT_BYTES or inline == INLINE_TENSORS:
            need += padded(size)
        else:
            inline += 1
    return need


def place(outputs: Sequence[Output], view: memoryview | None, segment: int, offset: int) -> tuple[Place, ...]:
    """Where the reply says that the outputs are, with the large ones copied into `view`, which lies at `offset` of
    `segment`."""
    if view is None:
        return tuple([data for _, _, data in outputs])
    places: list[Place] = []
    at = inline = 0
    for _, _, data in outputs:
        size = len(data)
        if size <= INLINE_LIMIT_BYTES and inline < INLINE_TENSORS:
            places.append(data)
            inline += 1
            continue
        view[at : at + size] = data
        places.append((segment, offset + at, size))
        at += padded(size)
    return tuple(places)


def padded(size: int) -> int:
    """Bytes that an output takes in its grant."""
    return -(-size // ALIGNMENT) * ALIGNMENT
