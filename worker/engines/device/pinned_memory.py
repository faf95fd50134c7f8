"""Memory of gateways that a device copies from and to by itself: registered once, as long as it is mapped.

A registered extent is copied at the full speed of the bus and while this process goes on (53 to 55 GB/s on an H200,
against 10 to 17 unregistered, DeepSpeed#8283). Registering takes longer than many copies: once for each extent, never
for each request. What cannot be registered is used as it is: slower, and nobody's request fails for it.

An extent of requests is mapped read-only, which only some devices register (flag 8). Where they do not, `covers` says
no, and the copies go by way of a small buffer that is registered (transfer.py).
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
    """What registers memory for the device of this process: `driver.py`."""

    registers_read_only: bool

    def register(self, address: int, size: int, flags: int) -> str:
        """Register whole pages; what went wrong, or nothing."""
        ...

    def unregister(self, address: int) -> str:
        """Undo it; what went wrong, or nothing."""
        ...


def registration_flags(size: int, *, writable: bool, registers_read_only: bool) -> int | None:
    """How to register a mapping, or None for not at all. Nothing is registered where there is nothing: the error of
    that may surface in the next call (torchstore#178). Pure."""
    if not size:
        return None
    if writable:
        return 0
    return READ_ONLY if registers_read_only else None


class PinnedMemory:
    """The mappings that are registered, by address. It holds no view: a mapping ends when its owner says so."""

    def __init__(self, registrar: Registrar | None) -> None:
        """None: no device, nothing is ever registered."""
        self._registrar = registrar
        self._starts: list[int] = []
        """Invariant: sorted, and the same addresses as in `_ends`."""
        self._ends: dict[int, int] = {}
        self._has_warned = False

    def attached(self, view: memoryview, *, writable: bool) -> None:
        """Register a mapping, if that can be."""
        if self._registrar is None:
            return
        size = view.nbytes
        flags = registration_flags(size, writable=writable, registers_read_only=self._registrar.registers_read_only)
        if flags is None:
            return
        address = _address(view)
        self._release(address)  # a mapping that was here before must be gone, or this one would not be here
        error = self._registrar.register(address, size, flags)
        if error:
            self._warn_once(
                f"{size} bytes of a gateway cannot be registered with the device, copies will be slower: {error}"
            )
            return
        self._ends[address] = address + size
        self._starts = sorted(self._ends)

    def detached(self, view: memoryview) -> None:
        """Undo it, before the mapping ends."""
        if view.nbytes:
            self._release(_address(view))

    def is_registered(self, address: int, size: int) -> bool:
        """Whether all these bytes are registered."""
        at = bisect_right(self._starts, address) - 1
        return at >= 0 and address + size <= self._ends[self._starts[at]]

    def clear(self) -> None:
        """Undo all."""
        for address in tuple(self._ends):
            self._release(address)

    def _release(self, address: int) -> None:
        if self._ends.pop(address, None) is None:
            return
        self._starts = sorted(self._ends)
        assert self._registrar is not None, "registered by nobody"
        error = self._registrar.unregister(address)
        if error:
            self._warn_once(f"memory of a gateway cannot be taken back from the device: {error}")

    def _warn_once(self, text: str) -> None:
        """Once: it will be the same for each extent."""
        if not self._has_warned:
            log.warning("%s", text)
        self._has_warned = True


def _address(view: memoryview) -> int:
    return np.frombuffer(view, np.uint8).ctypes.data
