"""Runs a batch on a device: copies jobs from their own memory to the batch's rows, runs the model, and copies each
job's rows of the result to its output buffer.

Two sets of buffers alternate: while the model computes one chunk, the other set is filled and the results of the chunk
before are fetched.

    IN    waits until the set is free, copies the rows of a chunk into it      event: filled
    MAIN  waits for `filled`, runs the model                                   events: free (inputs read), done
    OUT   waits for `done`, copies the results to the host

The copies of the next chunk are issued before the model runs on this one, which may block this thread for long.

No work is in progress when `run` returns or raises: all memory of the jobs may be reused then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from mmsup.ipc.tensors.numpy_arrays import Array
from mmsup.worker.engines.device import chunking
from mmsup.worker.engines.device.batch_outputs import BatchOutputs, DeviceResult
from mmsup.worker.engines.device.staging_buffer import StagingBuffer
from mmsup.worker.engines.device.streams import DeviceStream, StreamDevice
from mmsup.worker.execution.engine import OutputBuffers

BUFFER_SETS: Final = 2

Compute = Callable[[dict[str, Any]], Mapping[str, Any]]
"""Tensors in, tensors out; on MAIN."""


@dataclass(frozen=True, slots=True)
class TransferOptions:
    max_rows: int
    """0: the model has no batch axis, and runs one job at a time."""
    pads: bool = False
    """Whether batches are padded with zeros to 1, 2, 4, …, max_rows rows."""
    owns_inputs: bool = True
    """Whether the model gets copies of the inputs, which it may write to and keep. They are made on the device, where
    a copy takes little (12.6 MB: 0.01 ms at 3 TB/s [not measured here]), and the buffer is free sooner."""
    sizes: chunking.TransferSizes = chunking.DEFAULT_SIZES


class BatchTransfer:
    """The buffers of one model on one device."""

    def __init__(self, device: StreamDevice, ways: TransferOptions, covers: Callable[[int, int], bool]) -> None:
        """`is_registered(address, size)`: whether the device can read these bytes directly."""
        self.device = device
        self.options = ways
        self.staging_buffer = StagingBuffer(device, ways.sizes.stage)
        self._is_registered = covers
        self._buffers: dict[tuple[int, str], tuple[Any, int]] = {}

    def run(
        self,
        jobs: Sequence[Mapping[str, Array]],
        wanted: Sequence[str],
        buffers: Sequence[OutputBuffers],
        compute: Compute,
    ) -> list[dict[str, Array]]:
        """Run jobs as one batch; returns their results, in their output buffers where those fit."""
        if self.options.max_rows:
            chunking.check_batchable(jobs)
        else:
            assert len(jobs) == 1, "a model without a batch axis runs one job at a time"
        batch = _BatchRun(self, [{name: np.asarray(array, order="C") for name, array in job.items()} for job in jobs])
        outputs = BatchOutputs(self.device, batch.rows, buffers, self.options.sizes.direct)
        try:
            batch.run(compute, wanted, outputs)
        finally:
            self.device.synchronize()
        return outputs.arrays

    def shrink(self) -> None:
        """Free the buffers; no work is in progress."""
        self._buffers.clear()
        self.staging_buffer.clear()

    def is_registered(self, array: Array) -> bool:
        """Whether the device is to read an array directly."""
        return array.nbytes >= self.options.sizes.direct and self._is_registered(array.ctypes.data, array.nbytes)

    def reserve(self, turn: int, name: str, size: int) -> None:
        """Ensure a buffer of that size, reused until a larger one is needed. No work may be in progress: it could still
        read the buffer that is freed here."""
        _, capacity = self._buffers.get((turn, name), (None, -1))
        if size > capacity:
            self._buffers.pop((turn, name), None)
            self._buffers[turn, name] = (self.device.buffer(size), size)

    def buffer(self, turn: int, name: str) -> Any:  # the device's own
        return self._buffers[turn, name][0]


class _BatchRun:
    def __init__(self, transfer: BatchTransfer, jobs: Sequence[dict[str, Array]]) -> None:
        self._transfer = transfer
        self._device = transfer.device
        self._options = transfer.options
        self._jobs = jobs
        self.rows = [_rows(job) for job in jobs] if self._options.max_rows else [1]
        sizes = [sum(array.nbytes for array in job.values()) for job in jobs]
        self._chunks = chunking.split_into_chunks(self.rows, sizes, self._options.sizes.chunk)
        self._free_events: list[Any] = [None] * BUFFER_SETS
        self._filled_events: list[Any] = [None] * BUFFER_SETS
        self._held_results: list[Any] = []
        """Results that OUT reads: freed, their memory would be reused by MAIN at once."""

    def run(self, compute: Compute, wanted: Sequence[str], outputs: BatchOutputs) -> None:
        for index, chunk in enumerate(self._chunks):
            for name, array in self._jobs[chunk.first].items():
                self._transfer.reserve(index % BUFFER_SETS, name, self._row_bytes(array) * self._bucket_rows(chunk))
        self._fill(0)
        for index, chunk in enumerate(self._chunks):
            if index + 1 < len(self._chunks):
                self._fill(index + 1)
            results = self._compute(index, compute, wanted)
            if len(self._jobs) == 1 and not self._options.pads:
                outputs.fetch_whole(results)
            else:
                outputs.fetch(chunk, self._model_rows(chunk), results)

    def _fill(self, index: int) -> None:
        """IN: copy the inputs of a chunk into their buffers."""
        turn, chunk, device = index % BUFFER_SETS, self._chunks[index], self._device
        if self._free_events[turn] is not None:
            device.wait_event(DeviceStream.IN, self._free_events[turn])
        jobs = self._jobs[chunk.first : chunk.last]
        for name, model in jobs[0].items():
            arrays = [job[name].reshape(-1).view(np.uint8) for job in jobs]
            sizes = [each.nbytes for each in arrays]
            registered = [self._transfer.is_registered(each) for each in arrays]
            buffer = self._transfer.buffer(turn, name)
            for copy in chunking.plan_copies(sizes, registered, self._options.sizes):
                if isinstance(copy, chunking.DirectCopy):
                    device.copy_to_device(buffer, copy.at, arrays[copy.job])
                else:
                    self._transfer.staging_buffer.copy_to_device(copy, arrays, buffer)
            padding = self._row_bytes(model) * (self._model_rows(chunk) - chunk.rows)
            if padding:
                device.zero(buffer, sum(sizes), padding)
        self._filled_events[turn] = device.record_event(DeviceStream.IN)

    def _compute(self, index: int, compute: Compute, wanted: Sequence[str]) -> dict[str, DeviceResult]:
        """MAIN: run the model on a chunk; returns its results, which are not complete yet."""
        turn, chunk, device = index % BUFFER_SETS, self._chunks[index], self._device
        device.wait_event(DeviceStream.MAIN, self._filled_events[turn])
        tensors: dict[str, Any] = {}
        for name, array in self._jobs[chunk.first].items():
            shape = (self._model_rows(chunk), *array.shape[1:]) if self._options.max_rows else array.shape
            buffer = self._transfer.buffer(turn, name)
            tensors[name] = device.tensor(buffer, array.dtype, shape, own=self._options.owns_inputs)
        read = device.record_event(DeviceStream.MAIN)
        made = compute(tensors)
        results = {name: device.result(made[name]) for name in wanted if name in made}
        done = device.record_event(DeviceStream.MAIN)
        self._free_events[turn] = read if self._options.owns_inputs else done
        device.wait_event(DeviceStream.OUT, done)
        self._held_results.append(results)
        return results

    def _bucket_rows(self, chunk: chunking.Chunk) -> int:
        return chunking.bucket_rows(chunk.rows, self._options.max_rows) if self._options.max_rows else 1

    def _model_rows(self, chunk: chunking.Chunk) -> int:
        return self._bucket_rows(chunk) if self._options.pads else chunk.rows

    def _row_bytes(self, array: Array) -> int:
        return math.prod(array.shape[1:]) * array.itemsize if self._options.max_rows else array.nbytes


def _rows(job: Mapping[str, Array]) -> int:
    return int(next(iter(job.values())).shape[0])
