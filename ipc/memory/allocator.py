"""Ranges of one extent: which bytes are free. Pure; the memory itself is `arena.py`.

Sizes are rounded to classes (quarter steps between powers of two, at least 64 bytes), freed ranges wait on a stack
of their class, last in first out, because warm pages are cheap. When no class and no tail serves, the stacks are
melted into maximal free ranges: a long life of mixed sizes does not end in fragments.
"""

from __future__ import annotations

from typing import Final

ALIGNMENT: Final = 64


def round_up(size: int) -> int:
    """The class of a size: at most a quarter is wasted, and every class is a multiple of the alignment."""
    if size <= 4 * ALIGNMENT:
        return max(ALIGNMENT, -(-size // ALIGNMENT) * ALIGNMENT)
    step = 1 << ((size - 1).bit_length() - 3)
    return -(-size // step) * step


class Allocator:
    """The free ranges of `size` bytes."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.used = 0
        self.allocations = 0
        """How often a range was allocated: whether anybody has used this since."""
        self._free_lists: dict[int, list[int]] = {}
        self._free_ranges: list[tuple[int, int]] = [(0, size)]
        """Invariant: sorted, disjoint, none empty; what is neither here, nor on a stack, is in use."""

    def allocate(self, size: int) -> int | None:
        """Offset of a free range of the class of `size`, or None."""
        wanted = round_up(size)
        stack = self._free_lists.get(wanted)
        if stack:
            self.used += wanted
            self.allocations += 1
            return stack.pop()
        offset = self._carve(wanted)
        if offset is None and self._coalesce():
            offset = self._carve(wanted)
        if offset is not None:
            self.used += wanted
            self.allocations += 1
        return offset

    def free(self, offset: int, size: int) -> None:
        """Give back what `allocate(size)` gave."""
        given = round_up(size)
        assert 0 <= offset <= self.size - given, f"{given} bytes at {offset} are not of this extent"
        self.used -= given
        assert self.used >= 0, "a range was freed twice"
        self._free_lists.setdefault(given, []).append(offset)

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
        """Turn all stacks into ranges and merge neighbours; whether there was anything to melt."""
        loose = [(offset, size) for size, stack in self._free_lists.items() for offset in stack]
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
