"""A batch's results on their way to the host: the large ones each into its job's room, the rest of a name in one piece
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
"""What `Device.result` gives."""


class BatchOutputs:
    """One for each job, filled while the device computes, and whole when it is drained."""

    def __init__(self, device: StreamDevice, rows: Sequence[int], rooms: Sequence[OutputBuffers], least: int) -> None:
        """`least`: bytes from which on a copy into room pays."""
        self._min_buffer_bytes = least
        self._device = device
        self._rows = rows
        self._buffers = rooms
        self.arrays: list[dict[str, Array]] = [{} for _ in rooms]

    def fetch_whole(self, results: Mapping[str, DeviceResult]) -> None:
        """The results of a single job, of whatever shape: the caller holds them against what is declared."""
        for name, (tensor, dtype, shape) in results.items():
            room = self._buffer(0, name, dtype, shape)
            into = self._host_array(dtype, shape) if room is None else room
            self._device.get(tensor, -1, -1, into)
            self.arrays[0][name] = into

    def fetch(self, chunk: Chunk, expected: int, results: Mapping[str, DeviceResult]) -> None:
        """The results of a chunk, which must have so many rows; those behind the last job's are nobody's."""
        for name, result in results.items():
            shape = result[2]
            if not shape or shape[0] != expected:
                raise ValueError(f"output '{name}' has shape {list(shape)} for a batch of {expected}")
            self._fetch(chunk, name, *result)

    def _fetch(self, chunk: Chunk, name: str, tensor: Any, dtype: DType, shape: tuple[int, ...]) -> None:
        others: list[tuple[int, int, int]] = []
        for job, start in zip(range(chunk.first, chunk.last), chunk.starts, strict=True):
            end = start + self._rows[job]
            room = self._buffer(job, name, dtype, (end - start, *shape[1:]))
            if room is None:
                others.append((job, start, end))
                continue
            self._device.get(tensor, start, end, room)
            self.arrays[job][name] = room
        if not others:
            return
        first, last = others[0][1], others[-1][2]
        host = self._host_array(dtype, (last - first, *shape[1:]))
        self._device.get(tensor, first, last, host)
        for job, start, end in others:
            self.arrays[job][name] = host[start - first : end - first]

    def _buffer(self, job: int, name: str, dtype: DType, shape: tuple[int, ...]) -> Array | None:
        """The room of an output, if it fits and a copy of its own pays."""
        room = self._buffers[job].get(name)
        if room is None or room.nbytes < self._min_buffer_bytes or not is_usable_buffer(room, dtype, shape):
            return None
        return room

    def _host_array(self, dtype: DType, shape: tuple[int, ...]) -> Array:
        size = math.prod(shape) * dtype.itemsize
        return self._device.host(size)[:size].view(dtype).reshape(shape)
