"""Size of the output buffer that a request will need: as declared, else the largest used lately. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mmsup.ipc.memory.allocator import padded_size
from mmsup.ipc.messages.data import TensorLocation
from mmsup.ipc.specs import Metadata, is_inline
from mmsup.ipc.tensors.datatypes import size_bytes

SPAN_RESULTS: Final = 64


@dataclass(slots=True)
class _Span:
    count: int = 0
    largest: int = 0
    previous: int = 0
    """The largest of the previous span."""


def declared_bytes(metadata: Metadata, requested: Sequence[str], batch: int) -> int | None:
    """Buffer size for the large ones of the requested outputs (empty: all), None if a shape is not known."""
    total = inline = 0
    for spec in metadata.outputs:
        if requested and spec.name not in requested:
            continue
        shape = (batch, *spec.shape) if metadata.max_batch_size else spec.shape
        size = None if -1 in shape else size_bytes(spec.datatype, shape)
        if size is None:
            return None
        if is_inline(size, inline):
            inline += 1
        else:
            total += padded_size(size)
    return total


def used_bytes(places: Sequence[TensorLocation]) -> int:
    return sum(padded_size(place[2]) for place in places if isinstance(place, tuple))


class OutputSizeEstimator:
    """The largest recent result of each model version, for models whose output shapes are not declared.

    Results are counted in spans; the current span and the previous one count. So a large result is remembered for at
    least SPAN_RESULTS results after it, and forgotten after two spans without another.
    """

    def __init__(self) -> None:
        self.spans: dict[tuple[str, str], _Span] = {}
        """By model and version, of those that had a large result."""

    def largest(self, key: tuple[str, str]) -> int:
        """Bytes to reserve; 0 for none."""
        span = self.spans.get(key)
        return max(span.largest, span.previous) if span is not None else 0

    def observe_inline(self, key: tuple[str, str], results: int) -> None:
        """So many results needed no buffer."""
        if key in self.spans:
            for _ in range(results):
                self.observe(key, 0)

    def observe(self, key: tuple[str, str], size: int) -> None:
        span = self.spans.get(key)
        if span is None:
            span = self.spans[key] = _Span()
        elif span.count == SPAN_RESULTS:
            span.count, span.previous, span.largest = 0, span.largest, 0
        span.count += 1
        span.largest = max(span.largest, size)
