"""How much room a result will need: what is declared, else the largest seen lately. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mmsup.ipc.memory.allocator import ALIGNMENT
from mmsup.ipc.messages.data import TensorLocation
from mmsup.ipc.specs import INLINE_LIMIT_BYTES, INLINE_TENSORS, Metadata
from mmsup.ipc.tensors.datatypes import size_bytes

SPAN_RESULTS: Final = 64
"""Results."""


@dataclass(slots=True)
class _Span:
    count: int = 0
    largest: int = 0
    previous: int = 0
    """The largest of the span before."""


def padded_size(size: int) -> int:
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
            total += padded_size(size)
        else:
            inline += 1
    return total


def used_bytes(places: Sequence[TensorLocation]) -> int:
    """Room that a result did take."""
    return sum(padded_size(place[2]) for place in places if isinstance(place, tuple))


class OutputSizeEstimator:
    """The largest of the last results of each model version, for shapes that only the run can tell.

    Results are counted off in spans. What counts is the present span and the one before: a large result is known to at
    least SPAN that follow it, and forgotten after two spans without another.
    """

    def __init__(self) -> None:
        self._spans: dict[tuple[str, str], _Span] = {}

    def largest(self, key: tuple[str, str]) -> int:
        """Bytes to grant where nothing is declared; 0 for none."""
        span = self._spans.get(key)
        return max(span.largest, span.previous) if span is not None else 0

    def observe(self, key: tuple[str, str], size: int) -> None:
        """A result of this size came."""
        span = self._spans.get(key)
        if span is None:
            span = self._spans[key] = _Span()
        elif span.count == SPAN_RESULTS:
            span.count, span.previous, span.largest = 0, span.largest, 0
        span.count += 1
        span.largest = max(span.largest, size)
