"""The way to the device for what is small, or lies in memory that the device cannot read by itself: put together in
registered memory, and copied from there. Two halves in turns: one is filled while the other is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from mmsup.ipc.tensors.numpy_arrays import Array
from mmsup.worker.engines.device.chunking import StagedCopy
from mmsup.worker.engines.device.streams import DeviceStream, StreamDevice

HALVES: Final = 2


class StagingBuffer:
    """Made when it is first needed."""

    def __init__(self, device: StreamDevice, half_bytes: int) -> None:
        self._half_bytes = half_bytes
        self._device = device
        self._memory: Array | None = None
        self._read_events: list[Any] = [None] * HALVES
        """A mark behind the last copy from each half."""
        self._next = 0

    def put(self, copy: StagedCopy, arrays: Sequence[Array], buffer: Any) -> None:  # the device's own
        """Put the parts together and have them copied; the arrays may change after that."""
        turn = self._next
        self._next = (turn + 1) % HALVES
        if self._read_events[turn] is not None:
            self._device.join(self._read_events[turn])
        if self._memory is None:
            self._memory = self._device.host(HALVES * self._half_bytes)
        half = self._memory[turn * self._half_bytes :]
        at = 0
        for job, first, size in copy.parts:
            half[at : at + size] = arrays[job][first : first + size]
            at += size
        self._device.put(buffer, copy.at, half[: copy.size])
        self._read_events[turn] = self._device.mark(DeviceStream.IN)

    def clear(self) -> None:
        """Let go of the memory. Nothing is under way."""
        self._memory = None
        self._read_events = [None] * HALVES
