"""What a device does beside this process, as far as a batch needs it: three lanes, buffers, marks.

    IN    copies to the device
    MAIN  the model
    OUT   copies from the device

Each lane does its work in the order in which it was given; two lanes only as `wait` says. In `pytorch.py` they are
streams of a device; on the CPU each piece of work is done when it is given.
"""

from __future__ import annotations

import enum
from typing import Any, Protocol

import numpy as np

from mmsup.ipc.tensors.numpy_arrays import Array

DType = np.dtype[Any]  # the element type is data here


class DeviceStream(enum.Enum):
    """What runs beside the others."""

    IN = "in"
    MAIN = "main"
    OUT = "out"


class StreamDevice(Protocol):
    """What copies, computes and waits. Buffers, tensors and marks are its own: only what is said here is asked."""

    def buffer(self, size: int) -> Any:
        """Bytes on the device. Nothing is under way when this is called."""
        ...

    def host(self, size: int) -> Array:
        """Bytes on the host, registered if that pays."""
        ...

    def put(self, buffer: Any, at: int, data: Array) -> None:
        """IN: copy bytes to `at` of a buffer."""
        ...

    def clear(self, buffer: Any, at: int, size: int) -> None:
        """IN: fill with zeros."""
        ...

    def tensor(self, buffer: Any, dtype: DType, shape: tuple[int, ...], *, own: bool) -> Any:
        """MAIN: what the model takes: a view of the buffer's beginning, or a copy of that."""
        ...

    def result(self, tensor: Any) -> tuple[Any, DType, tuple[int, ...]]:
        """MAIN: what the model gave, in one piece in row-major order; its dtype and shape."""
        ...

    def get(self, tensor: Any, first: int, last: int, into: Array) -> None:
        """OUT: copy rows of a result; all of it if `first` is below 0."""
        ...

    def mark(self, lane: DeviceStream) -> Any:
        """A point behind all that the lane was given so far."""
        ...

    def wait(self, lane: DeviceStream, mark: Any) -> None:
        """The lane goes no further before that point is reached."""
        ...

    def join(self, mark: Any) -> None:
        """This thread goes no further before that point is reached."""
        ...

    def drain(self) -> None:
        """This thread waits for all lanes."""
        ...
