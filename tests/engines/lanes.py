"""A device that is as late as it may be: what it is told is done at some later time, in any order that the marks allow.

A mark that is missing shows as wrong numbers: copies read memory when they are done, not when they are given.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np

from mmsup.ipc.tensors.numpy_arrays import Array
from mmsup.worker.engines.device.streams import DeviceStream, DType

Work = Callable[[], bool]
"""Does itself, or says that it may not yet."""
Mark = tuple[DeviceStream, int]


class LateDevice:
    """Chance decides how far each lane has come."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._quickest_first = self._rng.sample(list(DeviceStream), len(DeviceStream))
        """One lane runs ahead of the others for long."""
        self._queues: dict[DeviceStream, list[Work]] = {lane: [] for lane in DeviceStream}
        self._done = dict.fromkeys(DeviceStream, 0)
        self.buffers: list[int] = []
        self.puts = 0
        self.gets = 0

    # What is under way.

    def give(self, lane: DeviceStream, do: Callable[[], None]) -> None:
        """More for a lane to do, later."""

        def work() -> bool:
            do()
            return True

        self._queues[lane].append(work)
        for _ in range(self._rng.randrange(3)):
            self._step()

    def _step(self) -> bool:
        """One piece of work of any lane that may go on; whether there was one."""
        lanes = [lane for lane in self._quickest_first if self._queues[lane]]
        if self._rng.random() < 0.2:
            self._rng.shuffle(lanes)
        for lane in lanes:
            if self._queues[lane][0]():
                self._queues[lane].pop(0)
                self._done[lane] += 1
                return True
        assert not lanes, "the lanes wait for each other"
        return False

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way."""
        return not any(self._queues.values())

    def mark(self, lane: DeviceStream) -> Mark:
        return lane, self._done[lane] + len(self._queues[lane])

    def wait(self, lane: DeviceStream, mark: Mark) -> None:
        self._queues[lane].append(lambda: self._done[mark[0]] >= mark[1])

    def join(self, mark: Mark) -> None:
        while self._done[mark[0]] < mark[1]:
            assert self._step(), "waiting for what was never given"

    def drain(self) -> None:
        while self._step():
            pass

    # Copies.

    def buffer(self, size: int) -> Array:
        assert self.is_idle, "a buffer is let go while the device is at work"
        self.buffers.append(size)
        return np.full(size, 0xEE, np.uint8)

    def host(self, size: int) -> Array:
        return np.full(size, 0xDD, np.uint8)

    def put(self, buffer: Array, at: int, data: Array) -> None:
        self.puts += 1
        assert at + data.nbytes <= buffer.nbytes
        self.give(DeviceStream.IN, lambda: _assign(buffer[at : at + data.nbytes], data))

    def clear(self, buffer: Array, at: int, size: int) -> None:
        assert at + size <= buffer.nbytes
        self.give(DeviceStream.IN, lambda: _assign(buffer[at : at + size], 0))

    def tensor(self, buffer: Array, dtype: DType, shape: tuple[int, ...], *, own: bool) -> Array:
        size = int(np.prod(shape)) * dtype.itemsize
        view = buffer[:size].view(dtype).reshape(shape)
        if not own:
            return view
        copy = np.empty_like(view)
        self.give(DeviceStream.MAIN, lambda: _assign(copy, view))
        return copy

    def result(self, tensor: Array) -> tuple[Array, DType, tuple[int, ...]]:
        return tensor, tensor.dtype, tensor.shape

    def get(self, tensor: Array, first: int, last: int, into: Array) -> None:
        self.gets += 1
        source = tensor if first < 0 else tensor[first:last]
        assert source.shape == into.shape
        self.give(DeviceStream.OUT, lambda: _assign(into, source))


def _assign(target: Array, source: Any) -> None:  # an array, or a number
    target[...] = source
