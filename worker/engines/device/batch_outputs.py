"""Copies a batch's results to the host: large ones each into its job's output buffer, the others of a name as one array
of which every job gets its rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mmsup.ipc.tensors.numpy_arrays import Array
from mmsup.worker.engines.device.chunking import Chunk, is_usable_buffer
from mmsup.worker.engines.device.streams import DType, StreamDevice
from mmsup.worker.execution.engine import OutputBuffers

DeviceResult = tuple[Any, DType, tuple[int, ...]]
"""What `StreamDevice.result` returns."""


class BatchOutputs:
    """The result of each job, filled while the device computes, and complete once it is synchronized."""

    def __init__(
        self, device: StreamDevice, rows: Sequence[int], buffers: Sequence[OutputBuffers], min_buffer_bytes: int
    ) -> None:
        """`min_buffer_bytes`: the size from which on a copy of its own into an output buffer pays."""
        self._min_buffer_bytes = min_buffer_bytes
        self._device = device
        self._rows = rows
        self._buffers = buffers
        self.arrays: list[dict[str, Array]] = [{} for _ in buffers]

    def fetch_whole(self, results: Mapping[str, DeviceResult]) -> None:
        """Copy the results of a single job, of any shape: the caller checks them against the declaration."""
        for name, (tensor, dtype, shape) in results.items():
            buffer = self._buffer(0, name, dtype, shape)
            into = self._host_array(dtype, shape) if buffer is None else buffer
            self._device.copy_to_host(tensor, -1, -1, into)
            self.arrays[0][name] = into

    def fetch(self, chunk: Chunk, expected: int, results: Mapping[str, DeviceResult]) -> None:
        """Copy the results of a chunk, which must have `expected` rows; those after the last job's are padding."""
        for name, result in results.items():
            shape = result[2]
            if not shape or shape[0] != expected:
                raise ValueError(f"output '{name}' has shape {list(shape)} for a batch of {expected}")
            self._fetch(chunk, name, *result)

    def _fetch(self, chunk: Chunk, name: str, tensor: Any, dtype: DType, shape: tuple[int, ...]) -> None:
        others: list[tuple[int, int, int]] = []
        for job, start in zip(range(chunk.first, chunk.last), chunk.starts, strict=True):
            end = start + self._rows[job]
            buffer = self._buffer(job, name, dtype, (end - start, *shape[1:]))
            if buffer is None:
                others.append((job, start, end))
                continue
            self._device.copy_to_host(tensor, start, end, buffer)
            self.arrays[job][name] = buffer
        if not others:
            return
        first, last = others[0][1], others[-1][2]
        host = self._host_array(dtype, (last - first, *shape[1:]))
        self._device.copy_to_host(tensor, first, last, host)
        for job, start, end in others:
            self.arrays[job][name] = host[start - first : end - first]

    def _buffer(self, job: int, name: str, dtype: DType, shape: tuple[int, ...]) -> Array | None:
        """The buffer of an output, if it fits and a copy of its own pays."""
        buffer = self._buffers[job].get(name)
        if buffer is None or buffer.nbytes < self._min_buffer_bytes or not is_usable_buffer(buffer, dtype, shape):
            return None
        return buffer

    def _host_array(self, dtype: DType, shape: tuple[int, ...]) -> Array:
        size = math.prod(shape) * dtype.itemsize
        return self._device.host_array(size)[:size].view(dtype).reshape(shape)
