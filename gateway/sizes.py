"""How much room a result will need: what is declared, else the largest seen. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from mmsup.ipc.allocator import ALIGNMENT
from mmsup.ipc.messages import Place
from mmsup.ipc.specs import INLINE_LIMIT_BYTES, INLINE_TENSORS, Metadata
from mmsup.ipc.tensor import size_bytes


def padded(size: int) -> int:
    """Bytes that an output takes in its slot."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def declared_bytes(metadata: Metadata, wanted: Sequence[str], batch: int) -> int | None:
    """Room for the large ones of the outputs wanted (none named: all), or None if a shape is not known before."""
    total = inline = 0
    for spec in metadata.outputs:
        if wanted and spec.name not in wanted:
            continue
        shape = (batch, *spec.shape) if metadata.max_batch_size else spec.shape
        size = None if -1 in shape else size_bytes(spec.datatype, shape)
        if size is None:
            return None
        if size > INLINE_LIMIT_BYTES or inline == INLINE_TENSORS:
            total += padded(size)
        else:
            inline += 1
    return total


def seen_bytes(places: Sequence[Place]) -> int:
    """Room that a result did take."""
    return sum(padded(place[2]) for place in places if isinstance(place, tuple))


class Learned:
    """The largest result of each model version so far, for shapes that only the run can tell."""

    def __init__(self) -> None:
        self._largest: dict[tuple[str, str], int] = {}

    def largest(self, key: tuple[str, str]) -> int:
        """Bytes to grant where nothing is declared; 0 for none."""
        return self._largest.get(key, 0)

    def note(self, key: tuple[str, str], size: int) -> None:
        """A result of this size came."""
        if size > self._largest.get(key, 0):
            self._largest[key] = size
