"""Where the rows of a batch go on a device, and by which copies. Pure.

A batch is one chunk, or a few that follow each other through two sets of buffers, so that the copies of the next go on
while one is computed. Within a chunk, the rows of each input lie below each other in the order of the jobs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from mmsup.ipc.tensors.numpy_arrays import Array


@dataclass(frozen=True, slots=True)
class TransferSizes:
    """From how many bytes on which way is taken. Others than these are for tests."""

    chunk: int = 16 << 20
    """Input of a chunk where there are several: 0.3 ms of copying at 53 GB/s, which hides the 0.05 ms that a chunk's
    launches take, and work enough to fill a device [not measured here]."""
    direct: int = 64 << 10
    """A job's rows of this size are copied from and to where they lie. Smaller ones are put together on the host first:
    1.4 microseconds for 64 KiB, against 5 for each asynchronous copy that is launched [not measured here]."""
    stage: int = 4 << 20
    """Each half of the registered memory through which goes what is small, or lies in memory that is not registered."""


DEFAULT_SIZES: Final = TransferSizes()


@dataclass(frozen=True, slots=True)
class Chunk:
    """Jobs `first` to `last` (not included) of a batch."""

    first: int
    last: int
    starts: tuple[int, ...]
    """The first row of each job within the chunk."""
    rows: int


@dataclass(frozen=True, slots=True)
class DirectCopy:
    """One copy from a job's own memory to `at` of the device's buffer."""

    job: int
    at: int


@dataclass(frozen=True, slots=True)
class StagedCopy:
    """One copy of what was put together on the host: parts of jobs, as (job, first byte, size)."""

    at: int
    parts: tuple[tuple[int, int, int], ...]
    size: int


def bucket_rows(rows: int, limit: int) -> int:
    """The next power of two, or the limit where that comes first: how many rows a buffer has."""
    if not 0 < rows < limit:
        return rows
    return min(1 << (rows - 1).bit_length(), limit)


def check_batchable(jobs: Sequence[Mapping[str, Array]]) -> None:
    """ValueError for jobs that cannot lie below each other."""
    first = jobs[0]
    kinds = {name: (array.dtype, array.ndim, array.shape[1:]) for name, array in first.items()}
    for job in jobs:
        if job.keys() != kinds.keys():
            raise ValueError(f"a batch of different inputs: {sorted(first)} and {sorted(job)}")
        rows: int | None = None
        for name, array in job.items():
            shape = array.shape
            if kinds[name] != (array.dtype, array.ndim, shape[1:]):
                raise ValueError(f"input '{name}' cannot be one batch: {_describe(first[name])} and {_describe(array)}")
            if not shape or (rows is not None and shape[0] != rows):
                raise ValueError(f"the inputs of a job differ in rows: {[list(each.shape) for each in job.values()]}")
            rows = shape[0]


def _describe(array: Array) -> str:
    return f"{array.dtype} of shape {list(array.shape)}"


def split_into_chunks(rows: Sequence[int], sizes: Sequence[int], least: int) -> list[Chunk]:
    """The jobs of a batch, with so many rows and bytes each, in chunks of at least so many bytes: a last one that is
    smaller would be all launches, and stays with the one before."""
    groups: list[list[int]] = [[]]
    filled, left = 0, sum(sizes)
    for job, size in enumerate(sizes):
        if filled >= least and left >= least:
            groups.append([])
            filled = 0
        groups[-1].append(job)
        filled += size
        left -= size
    return [_chunk(group, rows) for group in groups if group]


def _chunk(group: Sequence[int], rows: Sequence[int]) -> Chunk:
    starts: list[int] = []
    total = 0
    for job in group:
        starts.append(total)
        total += rows[job]
    return Chunk(group[0], group[-1] + 1, tuple(starts), total)


def plan_copies(sizes: Sequence[int], registered: Sequence[bool], ways: TransferSizes) -> list[DirectCopy | StagedCopy]:
    """The copies by which jobs of these sizes come to lie behind each other on the device."""
    made: list[DirectCopy | StagedCopy] = []
    parts: list[tuple[int, int, int]] = []
    at = start = 0

    def put_together() -> None:
        if parts:
            made.append(StagedCopy(start, tuple(parts), at - start))
            parts.clear()

    for job, size in enumerate(sizes):
        if registered[job] and size >= ways.direct:
            put_together()
            made.append(DirectCopy(job, at))
            at += size
            continue
        done = 0
        while done < size:
            if not parts:
                start = at
            part = min(size - done, ways.stage - (at - start))
            parts.append((job, done, part))
            done += part
            at += part
            if at - start == ways.stage:
                put_together()
    put_together()
    return made


def is_usable_buffer(room: Array | None, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> bool:
    """Whether an output can be written into this room."""
    if room is None or room.dtype != dtype or room.shape != shape:
        return False
    return room.flags.c_contiguous and room.flags.aligned and room.flags.writeable
