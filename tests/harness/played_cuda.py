"""The CUDA driver as a worker calls it, without a device: memory of a GPU is a file, named by its handle.

It stands for `ctypes.CDLL("libcuda.so.1")`, and takes and fills the same ctypes values. Standard library only: a
model of a test has it in its own code.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections import Counter
from typing import Any
from uuid import UUID

IPC_INVALID = 400


def handle_of(name: str) -> bytes:
    return name.encode().ljust(64, b"\0")


class PlayedCuda:
    def __init__(self, folder: str, uuid: str) -> None:
        self.folder = folder
        self.uuid = uuid
        """As the driver has it, without a prefix."""
        self.calls: Counter[str] = Counter()
        self.refusals: dict[str, int] = {}
        """Codes, by function."""
        self.depth = 0
        """Of the stack of contexts."""
        self.opened: dict[int, mmap.mmap] = {}

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cu"):
            raise AttributeError(name)

        def call(*arguments: Any) -> int:
            self.calls[name] += 1
            code = self.refusals.get(name, 0)
            act = getattr(self, name.removesuffix("_v2").removeprefix("cu").lower(), None)
            return code if code or act is None else act(*arguments) or 0

        return call

    def devicegetuuid(self, into: Any, _: Any) -> None:
        into[:] = UUID(self.uuid).bytes

    def ctxpushcurrent(self, _: Any) -> None:
        self.depth += 1

    def ctxpopcurrent(self, _: Any) -> None:
        self.depth -= 1

    def ipcopenmemhandle(self, address: Any, handle: Any, flags: Any) -> int:
        assert flags.value == 1
        assert self.depth == 1
        try:
            fd = os.open(os.path.join(self.folder, bytes(handle).rstrip(b"\0").decode()), os.O_RDWR)
        except OSError:
            return IPC_INVALID
        memory = mmap.mmap(fd, 0)
        os.close(fd)
        address._obj.value = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        self.opened[address._obj.value] = memory
        return 0

    def ipcclosememhandle(self, address: Any) -> int:
        return 0 if self.opened.pop(address.value, None) is not None else 1

    def memgetaddressrange(self, base: Any, size: Any, address: Any) -> int:
        if address.value not in self.opened:
            return 1
        base._obj.value, size._obj.value = address.value, len(self.opened[address.value])
        return 0

    def memcpydtoh(self, into: Any, address: Any, size: Any) -> int:
        return self._copy(into.value, address.value, size.value, address.value)

    def memcpyhtod(self, address: Any, source: Any, size: Any) -> int:
        return self._copy(address.value, source.value, size.value, address.value)

    def _copy(self, into: int, source: int, size: int, device: int) -> int:
        assert self.depth == 1
        if not any(start <= device and device + size <= start + len(each) for start, each in self.opened.items()):
            return 1
        ctypes.memmove(into, source, size)
        return 0
