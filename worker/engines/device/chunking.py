"""Divides a batch into chunks and plans the copies to the device. Pure.

A batch is one chunk, or a few that alternate between two sets of buffers, so that the next is copied while one is
computed. Within a chunk, the rows of each input are contiguous, in the order of the jobs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

import numpy as np

from mmsup.ipc.tensors.numpy_arrays import Array


@dataclass(frozen=True, slots=True)
class TransferSizes:
    """Thresholds in bytes. Others than the defaults are for tests."""

    chunk: int = 16 << 20
    """Input of a chunk where there are several: copied in 0.3 ms at 53 GB/s, which hides the 0.05 ms that a chunk's
    launches take, and enough work to fill a device [not measured here]."""
    direct: int = 64 << 10
    """A job's rows of this size are copied directly. Smaller ones are assembled on the host first: 1.4 microseconds for
    64 KiB, against 5 for each asynchronous copy that is launched [not measured here]."""
    stage: int = 4 << 20
    """Each half of the staging buffer, for rows that are small or not in registered memory."""


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
    """One copy of parts that are assembled on the host: (job, first byte, size)."""

    at: int
    parts: tuple[tuple[int, int, int], ...]
    size: int


def bucket_rows(rows: int, limit: int) -> int:
    """The rows of a buffer: the next power of two, at most the limit."""
    if not 0 < rows < limit:
        return rows
    return min(1 << (rows - 1).bit_length(), limit)


def check_batchable(jobs: Sequence[Mapping[str, Array]]) -> None:
    """ValueError for jobs that cannot form one batch."""
    first = jobs[0]
    layouts = {name: (array.dtype, array.ndim, array.shape[1:]) for name, array in first.items()}
    for job in jobs:
        if job.keys() != layouts.keys():
            raise ValueError(f"a batch of different inputs: {sorted(first)} and {sorted(job)}")
        rows: int | None = None
        for name, array in job.items():
            shape = array.shape
            if layouts[name] != (array.dtype, array.ndim, shape[1:]):
                raise ValueError(f"input '{name}' cannot be one batch: {_describe(first[name])} and {_describe(array)}")
            if not shape or (rows is not None and shape[0] != rows):
                raise ValueError(f"the inputs of a job differ in rows: {[list(each.shape) for each in job.values()]}")
            rows = shape[0]


def _describe(array: Array) -> str:
    return f"{array.dtype} of shape {list(array.shape)}"


def split_into_chunks(rows: Sequence[int], sizes: Sequence[int], least: int) -> list[Chunk]:
    """The jobs of a batch, with so many rows and bytes each, in chunks of at least `least` bytes: a smaller last one
    would cost mostly launches, and joins the one before."""
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
    *starts, total = accumulate((rows[job] for job in group), initial=0)
    return Chunk(group[0], group[-1] + 1, tuple(starts), total)


def plan_copies(
    sizes: Sequence[int], registered: Sequence[bool], limits: TransferSizes
) -> list[DirectCopy | StagedCopy]:
    """The copies after which jobs of these sizes are contiguous on the device."""
    made: list[DirectCopy | StagedCopy] = []
    parts: list[tuple[int, int, int]] = []
    at = start = 0

    def close_staged() -> None:
        if parts:
            made.append(StagedCopy(start, tuple(parts), at - start))
            parts.clear()

    for job, size in enumerate(sizes):
        if registered[job] and size >= limits.direct:
            close_staged()
            made.append(DirectCopy(job, at))
            at += size
            continue
        done = 0
        while done < size:
            if not parts:
                start = at
            part = min(size - done, limits.stage - (at - start))
            parts.append((job, done, part))
            done += part
            at += part
            if at - start == limits.stage:
                close_staged()
    close_staged()
    return made


def is_usable_buffer(buffer: Array | None, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> bool:
    """Whether an output of this dtype and shape can be written into the buffer."""
    if buffer is None or buffer.dtype != dtype or buffer.shape != shape:
        return False
    return buffer.flags.c_contiguous and buffer.flags.aligned and buffer.flags.writeable
