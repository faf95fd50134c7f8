"""A fake device that executes work as late as events allow, in any order.

A missing event shows as wrong numbers: copies read memory when they are executed, not when they are issued.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np

from mmsup.ipc.tensors.numpy_arrays import Array
from mmsup.worker.engines.device.streams import DeviceStream, DType

Work = Callable[[], bool]
"""Executes itself and returns True, or returns False because it has to wait."""
Event = tuple[DeviceStream, int]


class LateDevice:
    """A random generator chooses which stream goes on next."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._quickest_first = self._rng.sample(list(DeviceStream), len(DeviceStream))
        """One stream stays ahead of the others."""
        self._queues: dict[DeviceStream, list[Work]] = {stream: [] for stream in DeviceStream}
        self._done = dict.fromkeys(DeviceStream, 0)
        self.buffers: list[int] = []
        self.puts = 0
        self.gets = 0

    # Work in progress.

    def enqueue(self, stream: DeviceStream, do: Callable[[], None]) -> None:
        """Add work to a stream."""

        def work() -> bool:
            do()
            return True

        self._queues[stream].append(work)
        for _ in range(self._rng.randrange(3)):
            self._step()

    def _step(self) -> bool:
        """Execute one piece of work of any stream that need not wait; False if all are empty."""
        streams = [stream for stream in self._quickest_first if self._queues[stream]]
        if self._rng.random() < 0.2:
            self._rng.shuffle(streams)
        for stream in streams:
            if self._queues[stream][0]():
                self._queues[stream].pop(0)
                self._done[stream] += 1
                return True
        assert not streams, "the streams wait for each other"
        return False

    @property
    def is_idle(self) -> bool:
        """Whether no work is in progress."""
        return not any(self._queues.values())

    def record_event(self, stream: DeviceStream) -> Event:
        return stream, self._done[stream] + len(self._queues[stream])

    def wait_event(self, stream: DeviceStream, event: Event) -> None:
        self._queues[stream].append(lambda: self._done[event[0]] >= event[1])

    def synchronize_event(self, event: Event) -> None:
        while self._done[event[0]] < event[1]:
            assert self._step(), "an event of work that was never enqueued"

    def synchronize(self) -> None:
        while self._step():
            pass

    # Copies.

    def buffer(self, size: int) -> Array:
        assert self.is_idle, "a buffer is freed while the device is working"
        self.buffers.append(size)
        return np.full(size, 0xEE, np.uint8)

    def host_array(self, size: int) -> Array:
        return np.full(size, 0xDD, np.uint8)

    def copy_to_device(self, buffer: Array, at: int, data: Array) -> None:
        self.puts += 1
        assert at + data.nbytes <= buffer.nbytes
        self.enqueue(DeviceStream.IN, lambda: _assign(buffer[at : at + data.nbytes], data))

    def zero(self, buffer: Array, at: int, size: int) -> None:
        assert at + size <= buffer.nbytes
        self.enqueue(DeviceStream.IN, lambda: _assign(buffer[at : at + size], 0))

    def tensor(self, buffer: Array, dtype: DType, shape: tuple[int, ...], *, own: bool) -> Array:
        size = int(np.prod(shape)) * dtype.itemsize
        view = buffer[:size].view(dtype).reshape(shape)
        if not own:
            return view
        copy = np.empty_like(view)
        self.enqueue(DeviceStream.MAIN, lambda: _assign(copy, view))
        return copy

    def result(self, tensor: Array) -> tuple[Array, DType, tuple[int, ...]]:
        return tensor, tensor.dtype, tensor.shape

    def copy_to_host(self, tensor: Array, first: int, last: int, into: Array) -> None:
        self.gets += 1
        source = tensor if first < 0 else tensor[first:last]
        assert source.shape == into.shape
        self.enqueue(DeviceStream.OUT, lambda: _assign(into, source))


def _assign(target: Array, source: Any) -> None:  # an array, or a number
    target[...] = source
