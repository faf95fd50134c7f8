"""Allocator for the bytes of one extent. Pure; the memory itself is in `arena.py`.

Sizes are rounded up to size classes (quarter steps between powers of two, at least 64 bytes). Freed ranges go to the
free list of their class, last in first out, because pages used lately are still in the cache. When no free list and no
free range serves, all free lists are coalesced into maximal free ranges, so fragmentation does not accumulate.
"""

from __future__ import annotations

from typing import Final

ALIGNMENT: Final = 64


def padded_size(size: int) -> int:
    """Bytes that one of several tensors takes in a shared buffer: the next multiple of the alignment."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def round_up(size: int) -> int:
    """The size class: at most a quarter is wasted, and each class is a multiple of the alignment."""
    if size <= 4 * ALIGNMENT:
        return max(ALIGNMENT, padded_size(size))
    step = 1 << ((size - 1).bit_length() - 3)
    return -(-size // step) * step


class Allocator:
    def __init__(self, size: int) -> None:
        self.size = size
        self.used = 0
        self.allocations = 0
        """Number of `allocate` calls that succeeded; unchanged means unused since."""
        self._free_lists: dict[int, list[int]] = {}
        self._free_ranges: list[tuple[int, int]] = [(0, size)]
        """Invariant: sorted, disjoint, none empty. What is neither here nor on a free list is allocated."""

    def allocate(self, size: int) -> int | None:
        """The offset of a free range of at least `size` bytes, or None."""
        rounded = round_up(size)
        free_list = self._free_lists.get(rounded)
        offset = free_list.pop() if free_list else self._carve(rounded)
        if offset is None and self._coalesce():
            offset = self._carve(rounded)
        if offset is not None:
            self.used += rounded
            self.allocations += 1
        return offset

    def free(self, offset: int, size: int) -> None:
        rounded = round_up(size)
        assert 0 <= offset <= self.size - rounded, f"{rounded} bytes at {offset} are not in this extent"
        self.used -= rounded
        assert self.used >= 0, "a range was freed twice"
        self._free_lists.setdefault(rounded, []).append(offset)

    def _carve(self, size: int) -> int | None:
        for index, (start, length) in enumerate(self._free_ranges):
            if length >= size:
                if length == size:
                    del self._free_ranges[index]
                else:
                    self._free_ranges[index] = (start + size, length - size)
                return start
        return None

    def _coalesce(self) -> bool:
        """Move all free lists into the free ranges and merge neighbours; False if the lists were empty."""
        loose = [(offset, size) for size, offsets in self._free_lists.items() for offset in offsets]
        if not loose:
            return False
        self._free_lists.clear()
        merged: list[tuple[int, int]] = []
        for start, length in sorted(self._free_ranges + loose):
            if merged and merged[-1][0] + merged[-1][1] == start:
                merged[-1] = (merged[-1][0], merged[-1][1] + length)
            else:
                merged.append((start, length))
        self._free_ranges = merged
        return True
