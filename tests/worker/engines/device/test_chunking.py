"""Chunks of a batch and the copies to a device."""

from __future__ import annotations

import random

import numpy as np
import pytest

from mmsup.ipc.tensors.numpy_arrays import Array
from mmsup.worker.engines.device.chunking import (
    Chunk,
    DirectCopy,
    StagedCopy,
    TransferSizes,
    bucket_rows,
    check_batchable,
    is_usable_buffer,
    plan_copies,
    split_into_chunks,
)

BIG = 1000
CHUNK_BYTES = 10_000
SIZES = TransferSizes(CHUNK_BYTES, BIG, 100)


@pytest.mark.parametrize(
    ("rows", "limit", "expected"),
    [
        (1, 64, 1),
        (2, 64, 2),
        (3, 64, 4),
        (4, 64, 4),
        (5, 64, 8),
        (33, 64, 64),
        (33, 48, 48),
        (48, 48, 48),
        (50, 48, 50),
    ],
)
def test_a_buffer_has_a_power_of_two_rows_or_the_largest_batch(rows: int, limit: int, expected: int) -> None:
    assert bucket_rows(rows, limit) == expected


def test_a_batch_is_one_chunk_unless_each_part_is_large_enough() -> None:
    assert split_into_chunks([1, 2, 3], [10, 20, 30], CHUNK_BYTES) == [Chunk(0, 3, (0, 1, 3), 6)]
    half = CHUNK_BYTES // 2
    assert split_into_chunks([1, 2, 3, 4, 5], [half] * 5, CHUNK_BYTES) == [
        Chunk(0, 2, (0, 1), 3),
        Chunk(2, 5, (0, 3, 7), 12),
    ]
    assert split_into_chunks([4, 4], [CHUNK_BYTES, CHUNK_BYTES], CHUNK_BYTES) == [
        Chunk(0, 1, (0,), 4),
        Chunk(1, 2, (0,), 4),
    ]
    assert split_into_chunks([4, 4], [3 * CHUNK_BYTES, 1], CHUNK_BYTES) == [Chunk(0, 2, (0, 4), 8)]


def test_chunks_hold_every_job_once_and_in_order() -> None:
    rng = random.Random(3)
    for _ in range(500):
        count = rng.randrange(1, 20)
        rows = [rng.randrange(1, 9) for _ in range(count)]
        sizes = [rng.randrange(0, CHUNK_BYTES) for _ in range(count)]
        made = split_into_chunks(rows, sizes, CHUNK_BYTES)
        assert [job for each in made for job in range(each.first, each.last)] == list(range(count))
        for each in made:
            mine = rows[each.first : each.last]
            assert each.starts == tuple(sum(mine[:index]) for index in range(len(mine)))
            assert each.rows == sum(mine)
            assert len(made) == 1 or sum(sizes[each.first : each.last]) >= CHUNK_BYTES


direct, staged = DirectCopy, StagedCopy


@pytest.mark.parametrize(
    ("sizes", "registered", "expected"),
    [
        ([BIG, BIG], [True, True], [direct(0, 0), direct(1, BIG)]),
        ([8, 4], [True, False], [staged(0, ((0, 0, 8), (1, 0, 4)), 12)]),
        ([8, BIG, 4], [True] * 3, [staged(0, ((0, 0, 8),), 8), direct(1, 8), staged(8 + BIG, ((2, 0, 4),), 4)]),
        ([150, 30], [False, False], [staged(0, ((0, 0, 100),), 100), staged(100, ((0, 100, 50), (1, 0, 30)), 80)]),
        ([100, 100], [False, False], [staged(0, ((0, 0, 100),), 100), staged(100, ((1, 0, 100),), 100)]),
        ([0, 0], [True, False], []),
    ],
)  # fmt: skip
def test_large_registered_rows_are_copied_directly(
    sizes: list[int], registered: list[bool], expected: list[DirectCopy | StagedCopy]
) -> None:
    assert plan_copies(sizes, registered, SIZES) == expected


def test_the_copies_bring_every_byte_to_its_place() -> None:
    rng = random.Random(5)
    for _ in range(500):
        sizes = [rng.choice((0, 1, 7, 99, BIG, BIG + 5)) for _ in range(rng.randrange(1, 9))]
        registered = [rng.random() < 0.5 for _ in sizes]
        jobs = [rng.randbytes(size) for size in sizes]
        device = bytearray(sum(sizes))
        for each in plan_copies(sizes, registered, SIZES):
            if isinstance(each, DirectCopy):
                assert registered[each.job]
                device[each.at : each.at + sizes[each.job]] = jobs[each.job]
                continue
            assert each.size <= SIZES.stage
            together = b"".join(jobs[job][start : start + size] for job, start, size in each.parts)
            assert len(together) == each.size
            device[each.at : each.at + each.size] = together
        assert bytes(device) == b"".join(jobs)


def rows(*shape: int, dtype: str = "f4") -> Array:
    return np.zeros(shape, dtype)


@pytest.mark.parametrize(
    ("jobs", "text"),
    [
        ([{"x": rows(1, 3)}, {"x": rows(2, 4)}], "input 'x' cannot be one batch"),
        ([{"x": rows(1, 3)}, {"x": rows(2, 3, dtype="f8")}], "input 'x' cannot be one batch"),
        ([{"x": rows(1, 3)}, {"x": rows(3)}], "input 'x' cannot be one batch"),
        ([{"x": rows(1, 3)}, {"z": rows(1, 3)}], "a batch of different inputs"),
        ([{"x": rows(1, 3)}, {"x": rows(1, 3), "z": rows(1)}], "a batch of different inputs"),
        ([{"x": rows(1, 3), "z": rows(2)}], "differ in rows"),
        ([{"x": rows()}], "differ in rows"),
    ],
)
def test_jobs_that_cannot_form_one_batch_are_refused(jobs: list[dict[str, Array]], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        check_batchable(jobs)


def test_jobs_that_differ_in_rows_alone_are_alike() -> None:
    check_batchable([{"x": rows(1, 3), "z": rows(1)}, {"x": rows(5, 3), "z": rows(5)}])


@pytest.mark.parametrize(
    ("buffer", "expected"),
    [
        (rows(2, 3), True),
        (None, False),
        (rows(2, 3, dtype="f8"), False),
        (rows(6), False),
        (rows(3, 2).T, False),
        (np.frombuffer(bytes(24), "f4").reshape(2, 3), False),
        (np.zeros(25, np.uint8)[1:].view("f4").reshape(2, 3), False),
    ],
)
def test_a_buffer_must_have_the_dtype_and_shape_of_the_output(buffer: Array | None, expected: bool) -> None:
    assert is_usable_buffer(buffer, np.dtype("f4"), (2, 3)) is expected
