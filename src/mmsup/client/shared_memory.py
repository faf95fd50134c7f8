"""Memory that a client shares with a server on the same machine: arrays in it are not sent, but read where they lie.

The file in /dev/shm has a name only until the server has opened it, so that nothing is left behind by a program that
ends in any way.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import secrets
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mmsup.client.tensors import Array

ALIGNMENT: Final = 64
_FOLDER: Final = "/dev/shm"  # noqa: S108 - where shared memory is
_MODE: Final = 0o600


class SharedMemory:
    """Made by `Client.shared_memory`. `name` is the server's name of it, `key` that of its file."""

    def __init__(self, size: int) -> None:
        """OSError if /dev/shm has no room for `size` bytes."""
        if size <= 0:
            raise ValueError("shared memory needs a size above 0")
        self.key = self.name = f"mmsup_client_{os.getpid()}_{secrets.token_hex(8)}"
        self.size = size
        self._used = 0
        self._path = f"{_FOLDER}/{self.key}"
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)
        try:
            os.posix_fallocate(fd, 0, size)  # a sparse file would be a SIGBUS at its first use where there is no room
            self._map = mmap.mmap(fd, size)
        except BaseException:
            self.remove_name()
            raise
        finally:
            os.close(fd)
        self._all = np.frombuffer(self._map, dtype=np.uint8)
        self._start = self._all.__array_interface__["data"][0]

    def array(self, shape: int | Sequence[int], dtype: npt.DTypeLike) -> Array:
        """An array in it that no other one overlaps; ValueError if there is no room left."""
        sizes = (shape,) if isinstance(shape, int) else tuple(shape)
        kind: np.dtype[Any] = np.dtype(dtype)
        if kind.kind in "OSU":
            raise ValueError("strings have no fixed size: send them in the request")
        count = 1
        for each in sizes:
            count *= each
        start = -(-self._used // ALIGNMENT) * ALIGNMENT
        end = start + count * kind.itemsize
        if end > self.size:
            text = f"{count * kind.itemsize} bytes do not fit: {self.size - self._used} of {self.size} are left"
            raise ValueError(f"{text}; `clear` makes all of it free again")
        self._used = end
        return self._all[start:end].view(kind).reshape(sizes)

    def clear(self) -> None:
        """Let later arrays take the place of those that were made so far."""
        self._used = 0

    def offset_of(self, array: Array) -> int | None:
        """Where an array lies in it; None if it lies elsewhere, or not in one piece."""
        if not array.nbytes or not array.flags.c_contiguous or array.dtype.kind in "OSU":
            return None
        start = int(array.__array_interface__["data"][0]) - self._start
        return start if start >= 0 and start + array.nbytes <= self.size else None

    def remove_name(self) -> None:
        """The server has opened the file, or never will."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)

    def close(self) -> None:
        """Its memory is given back when no array in it is left."""
        self.remove_name()
        self._all = np.empty(0, dtype=np.uint8)
        with contextlib.suppress(BufferError):
            self._map.close()
