"""A batch on a device: from the jobs' own memory into its rows, through the model, and from there into each job's room.

There are two sets of buffers, in turns: while the model computes one chunk, the other set is filled and the results
of the chunk before are fetched.

    IN    waits until the set is free, copies the rows of a chunk into it      mark: filled
    MAIN  waits for `filled`, runs the model                                   marks: free (inputs read), done
    OUT   waits for `done`, copies the results to the host

The copies of the next chunk are given out before the model of this one, which may keep this thread for long.

Nothing is left under way when `run` ends, by an exception too: then all memory of the jobs may be used again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from mmsup.ipc.tensors.numpy_arrays import Array
from mmsup.worker.engines.device.batch_outputs import BatchOutputs, DeviceResult
from mmsup.worker.engines.device.chunking import (
    DEFAULT_SIZES,
    Chunk,
    DirectCopy,
    TransferSizes,
    bucket_rows,
    check_batchable,
    plan_copies,
    split_into_chunks,
)
from mmsup.worker.engines.device.staging_buffer import StagingBuffer
from mmsup.worker.engines.device.streams import DeviceStream, StreamDevice
from mmsup.worker.execution.engine import OutputBuffers

BUFFER_SETS: Final = 2
"""Sets of buffers."""

Compute = Callable[[dict[str, Any]], Mapping[str, Any]]
"""Tensors in, tensors out; on MAIN."""


@dataclass(frozen=True, slots=True)
class TransferOptions:
    """How a model is run."""

    max_rows: int
    """0: it has no batch axis, and runs one job at a time."""
    pads: bool = False
    """Whether it sees whole buckets only (1, 2, 4, …, max_rows), the rows behind the batch being zeros."""
    owns_inputs: bool = True
    """Whether it gets inputs of its own, which it may write to and keep. That copy is made on the device, where it
    takes little (12.6 MB: 0.01 ms at 3 TB/s [not measured here]), and the buffer is free the sooner."""
    sizes: TransferSizes = DEFAULT_SIZES


class BatchTransfer:
    """The buffers of one model on one device."""

    def __init__(self, device: StreamDevice, ways: TransferOptions, covers: Callable[[int, int], bool]) -> None:
        """`covers` says whether so many bytes at an address are registered."""
        self.device = device
        self.options = ways
        self.staging_buffer = StagingBuffer(device, ways.sizes.stage)
        self._is_registered = covers
        self._buffers: dict[tuple[int, str], tuple[Any, int]] = {}

    def run(
        self,
        jobs: Sequence[Mapping[str, Array]],
        outputs: Sequence[str],
        rooms: Sequence[OutputBuffers],
        compute: Compute,
    ) -> list[dict[str, Array]]:
        """Run jobs as one batch; the answers, each in its room where that fits."""
        if self.options.max_rows:
            check_batchable(jobs)
        else:
            assert len(jobs) == 1, "a model without a batch axis runs one job at a time"
        batch = _BatchRun(self, [{name: np.asarray(array, order="C") for name, array in job.items()} for job in jobs])
        answers = BatchOutputs(self.device, batch.rows, rooms, self.options.sizes.direct)
        try:
            batch.run(compute, outputs, answers)
        finally:
            self.device.drain()
        return answers.arrays

    def shrink(self) -> None:
        """Let go of the buffers. Nothing is under way."""
        self._buffers.clear()
        self.staging_buffer.clear()

    def is_registered(self, array: Array) -> bool:
        """Whether the device is to read an array by itself."""
        return array.nbytes >= self.options.sizes.direct and self._is_registered(array.ctypes.data, array.nbytes)

    def reserve(self, turn: int, name: str, size: int) -> None:
        """Have a buffer of that size: always the same, until a larger one is asked for. Nothing is under way, or what
        is let go here might be read still."""
        _, has = self._buffers.get((turn, name), (None, -1))
        if size > has:
            self._buffers.pop((turn, name), None)
            self._buffers[turn, name] = (self.device.buffer(size), size)

    def buffer(self, turn: int, name: str) -> Any:  # the device's own
        """What was reserved."""
        return self._buffers[turn, name][0]


class _BatchRun:
    """One run: what is under way, and up to where."""

    def __init__(self, transfer: BatchTransfer, jobs: Sequence[dict[str, Array]]) -> None:
        self._transfer = transfer
        self._device = transfer.device
        self._options = transfer.options
        self._jobs = jobs
        self.rows = [_rows(job) for job in jobs] if self._options.max_rows else [1]
        sizes = [sum(array.nbytes for array in job.values()) for job in jobs]
        self._chunks = split_into_chunks(self.rows, sizes, self._options.sizes.chunk)
        self._free_events: list[Any] = [None] * BUFFER_SETS
        self._filled_events: list[Any] = [None] * BUFFER_SETS
        self._held_results: list[Any] = []
        """Results that OUT reads: let go, their memory would be MAIN's again at once."""

    def run(self, compute: Compute, outputs: Sequence[str], answers: BatchOutputs) -> None:
        """All chunks, in their order."""
        for index, chunk in enumerate(self._chunks):
            for name, array in self._jobs[chunk.first].items():
                self._transfer.reserve(index % BUFFER_SETS, name, self._row_bytes(array) * self._bucket_rows(chunk))
        self._fill(0)
        for index, chunk in enumerate(self._chunks):
            if index + 1 < len(self._chunks):
                self._fill(index + 1)
            results = self._compute(index, compute, outputs)
            if len(self._jobs) == 1 and not self._options.pads:
                answers.fetch_whole(results)
            else:
                answers.fetch(chunk, self._model_rows(chunk), results)

    def _fill(self, index: int) -> None:
        """IN: bring the inputs of a chunk into their buffers."""
        turn, chunk, device = index % BUFFER_SETS, self._chunks[index], self._device
        if self._free_events[turn] is not None:
            device.wait(DeviceStream.IN, self._free_events[turn])
        jobs = self._jobs[chunk.first : chunk.last]
        for name, model in jobs[0].items():
            arrays = [job[name].reshape(-1).view(np.uint8) for job in jobs]
            sizes = [each.nbytes for each in arrays]
            registered = [self._transfer.is_registered(each) for each in arrays]
            buffer = self._transfer.buffer(turn, name)
            for copy in plan_copies(sizes, registered, self._options.sizes):
                if isinstance(copy, DirectCopy):
                    device.put(buffer, copy.at, arrays[copy.job])
                else:
                    self._transfer.staging_buffer.put(copy, arrays, buffer)
            padding = self._row_bytes(model) * (self._model_rows(chunk) - chunk.rows)
            if padding:
                device.clear(buffer, sum(sizes), padding)
        self._filled_events[turn] = device.mark(DeviceStream.IN)

    def _compute(self, index: int, compute: Compute, outputs: Sequence[str]) -> dict[str, DeviceResult]:
        """MAIN: run the model on a chunk; what it will have given."""
        turn, chunk, device = index % BUFFER_SETS, self._chunks[index], self._device
        device.wait(DeviceStream.MAIN, self._filled_events[turn])
        tensors: dict[str, Any] = {}
        for name, array in self._jobs[chunk.first].items():
            shape = (self._model_rows(chunk), *array.shape[1:]) if self._options.max_rows else array.shape
            buffer = self._transfer.buffer(turn, name)
            tensors[name] = device.tensor(buffer, array.dtype, shape, own=self._options.owns_inputs)
        read = device.mark(DeviceStream.MAIN)
        made = compute(tensors)
        results = {name: device.result(made[name]) for name in outputs if name in made}
        done = device.mark(DeviceStream.MAIN)
        self._free_events[turn] = read if self._options.owns_inputs else done
        device.wait(DeviceStream.OUT, done)
        self._held_results.append(results)
        return results

    def _bucket_rows(self, chunk: Chunk) -> int:
        return bucket_rows(chunk.rows, self._options.max_rows) if self._options.max_rows else 1

    def _model_rows(self, chunk: Chunk) -> int:
        """How many rows the model sees."""
        return self._bucket_rows(chunk) if self._options.pads else chunk.rows

    def _row_bytes(self, array: Array) -> int:
        return math.prod(array.shape[1:]) * array.itemsize if self._options.max_rows else array.nbytes


def _rows(job: Mapping[str, Array]) -> int:
    return int(next(iter(job.values())).shape[0])
