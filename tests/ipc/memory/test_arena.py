"""Arena: extents are sealed against the worker, a slot has one owner at any time."""

from __future__ import annotations

import fcntl
import gc
import mmap
import os
import random
import resource
from collections.abc import Iterator

import pytest

from mmsup.ipc.memory.arena import (
    F_SEAL_FUTURE_WRITE,
    NEXT,
    ArenaSide,
    AttachedExtents,
    Extent,
    Slot,
    SlotState,
    extent_size,
)

SIZE = 1 << 16


@pytest.fixture
def requests() -> Iterator[Extent]:
    extent = Extent(0, SIZE, writable_by_worker=False)
    yield extent
    extent.close()


@pytest.fixture
def results() -> Iterator[Extent]:
    extent = Extent(1, SIZE, writable_by_worker=True)
    yield extent
    extent.close()


def test_the_seals_are_those_of_the_table(requests: Extent, results: Extent) -> None:
    common = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    assert fcntl.fcntl(requests.fd, fcntl.F_GET_SEALS) == common | F_SEAL_FUTURE_WRITE
    assert fcntl.fcntl(results.fd, fcntl.F_GET_SEALS) == common


@pytest.mark.parametrize("size", [0, SIZE // 2, SIZE * 2])
def test_an_extent_cannot_be_resized(requests: Extent, results: Extent, size: int) -> None:
    for extent in (requests, results):
        with pytest.raises(PermissionError):
            os.ftruncate(extent.fd, size)


def test_the_receiver_of_a_request_extent_cannot_write_to_it(requests: Extent) -> None:
    with pytest.raises(PermissionError):
        mmap.mmap(requests.fd, SIZE)
    with pytest.raises(PermissionError):
        os.pwrite(requests.fd, b"x", 0)
    again = os.open(f"/proc/self/fd/{requests.fd}", os.O_RDWR)
    with pytest.raises(PermissionError):
        os.pwrite(again, b"x", 0)
    os.close(again)


def test_the_gateway_writes_what_the_worker_reads_and_the_reverse(requests: Extent, results: Extent) -> None:
    attached = AttachedExtents()
    attached.attach(0, os.dup(requests.fd), SIZE, writable=False)
    attached.attach(1, os.dup(results.fd), SIZE, writable=True)
    requests.view(100, 5)[:] = b"hello"
    seen = attached.view(0, 100, 5, writable=False)
    assert seen is not None
    assert bytes(seen) == b"hello"
    assert seen.readonly
    room = attached.view(1, 64, 3, writable=True)
    assert room is not None
    room[:] = b"yes"
    assert bytes(results.view(64, 3)) == b"yes"


@pytest.mark.parametrize(
    ("segment", "offset", "size", "writable"),
    [(2, 0, 1, False), (0, -1, 1, False), (0, SIZE, 1, False), (0, 0, SIZE + 1, False), (0, 2**63, 1, False),
     (0, 0, -1, False), (0, 0, 1, True), (1, 0, 1, False)],
)  # fmt: skip
def test_a_location_outside_of_the_extents_has_no_view(
    requests: Extent, results: Extent, segment: int, offset: int, size: int, writable: bool
) -> None:
    attached = AttachedExtents()
    attached.attach(0, os.dup(requests.fd), SIZE, writable=False)
    attached.attach(1, os.dup(results.fd), SIZE, writable=True)
    assert attached.view(segment, offset, size, writable=writable) is None


def test_a_worker_can_enumerate_its_extents_before_they_are_detached(requests: Extent, results: Extent) -> None:
    attached = AttachedExtents()
    attached.attach(0, os.dup(requests.fd), SIZE, writable=False)
    attached.attach(1, os.dup(results.fd), SIZE, writable=True)
    assert attached.segments() == (0, 1)
    for segment, writable in ((0, False), (1, True)):
        whole = attached.extent(segment)
        assert whole is not None
        assert (len(whole[0]), whole[1]) == (SIZE, writable)
    attached.detach(0)
    assert attached.segments() == (1,)
    assert attached.extent(0) is None


def test_every_state_of_a_slot_is_in_the_table() -> None:
    assert set(NEXT) == set(SlotState)


@pytest.mark.parametrize("writable", [False, True])
def test_a_random_sequence_of_slots_ends_with_all_free(writable: bool) -> None:
    side = ArenaSide(writable_by_worker=writable)
    side.add(Extent(0, SIZE, writable_by_worker=writable))
    side.add(Extent(1, SIZE, writable_by_worker=writable))
    rng = random.Random(4)
    held: list[Slot] = []
    for _ in range(3000):
        if held and rng.random() < 0.5:
            slot = held.pop(rng.randrange(len(held)))
            following = [each for each in NEXT[slot.state] if each is not SlotState.FREE]
            if following and rng.random() < 0.7:
                slot.transition(rng.choice(following))
                held.append(slot)
            else:
                side.free(slot)
        else:
            made = side.allocate(rng.choice([64, 1000, 20_000]))
            if made is not None:
                assert len(made.view) == made.size
                held.append(made)
    for slot in held:
        side.free(slot)
    assert side.used_bytes == 0
    side.close()


def test_freeing_a_slot_twice_is_an_assertion_error() -> None:
    side = ArenaSide(writable_by_worker=False)
    side.add(Extent(0, SIZE, writable_by_worker=False))
    slot = side.allocate(64)
    assert slot is not None
    side.free(slot)
    with pytest.raises(AssertionError, match="cannot go"):
        side.free(slot)
    side.close()


def test_a_view_outlives_its_arena() -> None:
    side = ArenaSide(writable_by_worker=True)
    side.add(Extent(0, SIZE, writable_by_worker=True))
    slot = side.allocate(4096)
    assert slot is not None
    slot.view[:4] = b"last"
    side.close()
    assert bytes(slot.view[:4]) == b"last"
    side.free(slot)


def test_an_extent_for_a_large_tensor_is_just_large_enough() -> None:
    assert extent_size(1000) == 16 << 20
    assert 100_000_000 <= extent_size(100_000_000) <= 125_000_000
    assert extent_size(100_000_000) % mmap.PAGESIZE == 0


def test_an_extent_larger_than_the_available_memory_is_refused_before_allocation() -> None:
    with pytest.raises(MemoryError, match="short of memory"):
        Extent(0, 1 << 60, writable_by_worker=False)


def test_a_failed_allocation_is_a_memory_error() -> None:
    gc.collect()  # else descriptors of earlier tests might be closed in between
    before = set(os.listdir("/proc/self/fd"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE, limits[1]))
    try:
        with pytest.raises(MemoryError):
            Extent(0, SIZE * 2, writable_by_worker=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert set(os.listdir("/proc/self/fd")) == before
