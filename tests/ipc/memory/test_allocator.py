"""Allocator: ranges never overlap, freed ranges are reused, nothing is lost to fragmentation."""

from __future__ import annotations

import random

import pytest

from mmsup.ipc.memory.allocator import ALIGNMENT, Allocator, round_up


@pytest.mark.parametrize("size", [1, 63, 64, 65, 256, 257, 1000, 4097, 602_112, 12_600_000])
def test_a_size_class_wastes_a_quarter_at_most_and_is_aligned(size: int) -> None:
    rounded = round_up(size)
    assert rounded >= size
    assert rounded % ALIGNMENT == 0
    assert rounded <= max(size * 1.25, size + ALIGNMENT)
    assert round_up(rounded) == rounded


def test_random_allocations_never_overlap_and_end_with_everything_free() -> None:
    rng = random.Random(3)
    allocator = Allocator(1 << 20)
    held: dict[int, int] = {}
    for _ in range(20_000):
        if held and rng.random() < 0.5:
            freed = rng.choice(list(held))
            allocator.free(freed, held.pop(freed))
            continue
        size = rng.choice([10, 200, 5000, 70_000, 300_000])
        offset = allocator.allocate(size)
        if offset is None:
            continue
        assert offset >= 0
        assert offset + round_up(size) <= 1 << 20
        assert offset % ALIGNMENT == 0
        assert all(
            offset + round_up(size) <= other or other + round_up(taken) <= offset for other, taken in held.items()
        )
        held[offset] = size
    for offset, size in held.items():
        allocator.free(offset, size)
    assert allocator.used == 0
    assert allocator.allocate(1 << 20) == 0, "the whole extent is one range again"


def test_the_range_freed_last_is_allocated_next() -> None:
    allocator = Allocator(1 << 16)
    first, second = allocator.allocate(1000), allocator.allocate(1000)
    assert first is not None
    assert second is not None
    allocator.free(first, 1000)
    allocator.free(second, 1000)
    assert allocator.allocate(1000) == second


def test_freeing_a_range_twice_is_an_assertion_error() -> None:
    allocator = Allocator(4096)
    offset = allocator.allocate(64)
    assert offset is not None
    allocator.free(offset, 64)
    with pytest.raises(AssertionError, match="twice"):
        allocator.free(offset, 64)
