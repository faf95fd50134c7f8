"""Page-locked memory through which small inputs, and inputs in memory that the device cannot read directly, are copied.

Its two halves alternate: one is filled while the device reads the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from mmsup.ipc.tensors.numpy_arrays import Array
from mmsup.worker.engines.device.chunking import StagedCopy
from mmsup.worker.engines.device.streams import DeviceStream, StreamDevice

HALVES: Final = 2


class StagingBuffer:
    """Allocated at its first use."""

    def __init__(self, device: StreamDevice, half_bytes: int) -> None:
        self._half_bytes = half_bytes
        self._device = device
        self._memory: Array | None = None
        self._read_events: list[Any] = [None] * HALVES
        """An event after the last copy from each half."""
        self._next = 0

    def copy_to_device(self, copy: StagedCopy, arrays: Sequence[Array], buffer: Any) -> None:  # the device's own
        """Assemble the parts here and copy them on; the arrays may be reused when this returns."""
        turn = self._next
        self._next = (turn + 1) % HALVES
        if self._read_events[turn] is not None:
            self._device.synchronize_event(self._read_events[turn])
        if self._memory is None:
            self._memory = self._device.host_array(HALVES * self._half_bytes)
        half = self._memory[turn * self._half_bytes :]
        at = 0
        for job, first, size in copy.parts:
            half[at : at + size] = arrays[job][first : first + size]
            at += size
        self._device.copy_to_device(buffer, copy.at, half[: copy.size])
        self._read_events[turn] = self._device.record_event(DeviceStream.IN)

    def clear(self) -> None:
        """Free the memory; no copy is in progress."""
        self._memory = None
        self._read_events = [None] * HALVES
