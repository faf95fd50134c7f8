"""A client's shared memory: a file in /dev/shm, made, filled, damaged and removed by a test."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

FOLDER = "/dev/shm"
_numbers = itertools.count()


class ClientRegion:
    """`key` is new; the file is removed by `remove`, at the latest."""

    def __init__(self, size: int, mode: int = 0o600) -> None:
        self.key = f"mmsup_client_{os.getpid()}_{next(_numbers)}"
        self.path = f"{FOLDER}/{self.key}"
        self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
        os.fchmod(self.fd, mode)
        os.ftruncate(self.fd, size)

    def put(self, values: NDArray[np.float32], at: int = 0) -> None:
        os.pwrite(self.fd, values.tobytes(), at)

    def get(self, count: int, at: int = 0) -> list[float]:
        return [float(each) for each in np.frombuffer(os.pread(self.fd, 4 * count, at), dtype=np.float32)]

    def truncate(self, size: int) -> None:
        os.ftruncate(self.fd, size)

    @property
    def size(self) -> int:
        return os.fstat(self.fd).st_size

    def remove(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)


@contextlib.contextmanager
def client_region(size: int, mode: int = 0o600) -> Iterator[ClientRegion]:
    made = ClientRegion(size, mode)
    try:
        yield made
    finally:
        made.remove()
