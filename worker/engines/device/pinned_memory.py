"""Registers the gateways' shared memory with the device (page-locks it), which then copies from and to it directly.

A registered extent is copied at the full speed of the bus and asynchronously (53 to 55 GB/s on an H200, against 10 to
17 unregistered, DeepSpeed#8283). Registering takes longer than many copies, so it is done once for each extent, never
for a request. Memory that cannot be registered is copied more slowly; no request fails by it.

The extent of requests is mapped read-only, which only some devices can register (flag 8). On others `is_registered` is
false, and copies go through the staging buffer.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from typing import Final, Protocol

import numpy as np

log = logging.getLogger("mmsup.worker")

READ_ONLY: Final = 8
"""CU_MEMHOSTREGISTER_READ_ONLY, cudaHostRegisterReadOnly."""


class Registrar(Protocol):
    """Registers memory with the device of this process; cuda_driver.py implements it."""

    registers_read_only: bool

    def register(self, address: int, size: int, flags: int) -> str:
        """Register whole pages; returns an error text, empty if it succeeded."""
        ...

    def unregister(self, address: int) -> str:
        """Undo `register`; returns an error text, empty if it succeeded."""
        ...


def registration_flags(size: int, *, writable: bool, registers_read_only: bool) -> int | None:
    """How to register a mapping, or None for not at all. An empty one is not registered: its error may surface in the
    next call (torchstore#178). Pure."""
    if not size:
        return None
    if writable:
        return 0
    return READ_ONLY if registers_read_only else None


class PinnedMemory:
    """The registered mappings, by address. It holds no view, which would keep a mapping alive."""

    def __init__(self, registrar: Registrar | None) -> None:
        """Without a registrar nothing is ever registered."""
        self._registrar = registrar
        self._starts: list[int] = []
        """Invariant: sorted, and the same addresses as in `_ends`."""
        self._ends: dict[int, int] = {}
        self._has_warned = False

    def register(self, view: memoryview, *, writable: bool) -> None:
        """Register a mapping, if possible."""
        if self._registrar is None:
            return
        size = view.nbytes
        flags = registration_flags(size, writable=writable, registers_read_only=self._registrar.registers_read_only)
        if flags is None:
            return
        address = _address(view)
        self._release(address)  # an earlier mapping at this address is unmapped already
        error = self._registrar.register(address, size, flags)
        if error:
            self._warn_once(
                f"{size} bytes of a gateway cannot be registered with the device, copies will be slower: {error}"
            )
            return
        self._ends[address] = address + size
        self._starts = sorted(self._ends)

    def unregister(self, view: memoryview) -> None:
        """Undo `register`, before the memory is unmapped."""
        if view.nbytes:
            self._release(_address(view))

    def is_registered(self, address: int, size: int) -> bool:
        """Whether all these bytes are registered."""
        at = bisect_right(self._starts, address) - 1
        return at >= 0 and address + size <= self._ends[self._starts[at]]

    def clear(self) -> None:
        for address in tuple(self._ends):
            self._release(address)

    def _release(self, address: int) -> None:
        if self._ends.pop(address, None) is None:
            return
        self._starts = sorted(self._ends)
        assert self._registrar is not None, "registered without a registrar"
        error = self._registrar.unregister(address)
        if error:
            self._warn_once(f"memory of a gateway cannot be unregistered from the device: {error}")

    def _warn_once(self, text: str) -> None:
        """Log once: it will be the same for each extent."""
        if not self._has_warned:
            log.warning("%s", text)
        self._has_warned = True


def _address(view: memoryview) -> int:
    return np.frombuffer(view, np.uint8).ctypes.data
