"""The interface to a device that a batch transfer needs: three streams, buffers, events, as in CUDA.

    IN    copies to the device
    MAIN  the model
    OUT   copies from the device

Each stream executes its work in order; two streams are ordered only by `wait_event`. torch_streams.py implements it; on
the CPU each piece of work is executed at once.
"""

from __future__ import annotations

import enum
from typing import Any, Protocol

import numpy as np

from mmsup.ipc.tensors.numpy_arrays import Array

DType = np.dtype[Any]  # the element type is data here


class DeviceStream(enum.Enum):
    IN = "in"
    MAIN = "main"
    OUT = "out"


class StreamDevice(Protocol):
    """A device. Buffers, tensors and events are of its own types, which the caller passes on and does not inspect."""

    def buffer(self, size: int) -> Any:
        """Allocate bytes on the device. No work is in progress when this is called."""
        ...

    def host_array(self, size: int) -> Array:
        """Allocate bytes on the host, page-locked if that pays."""
        ...

    def copy_to_device(self, buffer: Any, at: int, data: Array) -> None:
        """IN: copy bytes to `at` of a buffer."""
        ...

    def zero(self, buffer: Any, at: int, size: int) -> None:
        """IN: set bytes to zero."""
        ...

    def tensor(self, buffer: Any, dtype: DType, shape: tuple[int, ...], *, own: bool) -> Any:
        """MAIN: an input of the model: a view of the start of the buffer, or a copy of it."""
        ...

    def result(self, tensor: Any) -> tuple[Any, DType, tuple[int, ...]]:
        """MAIN: an output of the model, contiguous in row-major order; its dtype and shape."""
        ...

    def copy_to_host(self, tensor: Any, first: int, last: int, into: Array) -> None:
        """OUT: copy rows of a result; all of it if `first` is below 0."""
        ...

    def record_event(self, stream: DeviceStream) -> Any:
        """An event that completes when all work given to the stream so far is done."""
        ...

    def wait_event(self, stream: DeviceStream, event: Any) -> None:
        """The stream executes no further work before the event completes."""
        ...

    def synchronize_event(self, event: Any) -> None:
        """Block this thread until the event completes."""
        ...

    def synchronize(self) -> None:
        """Block this thread until all streams are done."""
        ...
