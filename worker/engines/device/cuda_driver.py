"""The CUDA driver in the primary context of this process's device, by ctypes, so that it needs no engine's library.

The tests check calls, arguments and order against a fake library, not a device.
"""

from __future__ import annotations

import ctypes
from typing import Any, Final
from uuid import UUID

LIBRARY: Final = "libcuda.so.1"
HOST_REGISTER_READ_ONLY: Final = 113
"""CU_DEVICE_ATTRIBUTE_READ_ONLY_HOST_REGISTER_SUPPORTED."""


class CudaDriver:
    """Device 0 of this process, in its primary context, which the libraries use too. The context is retained until the
    process ends."""

    def __init__(self, library: Any) -> None:  # a ctypes library
        """OSError if the driver refuses."""
        self._library = library
        self._device = ctypes.c_int()
        self._context = ctypes.c_void_p()
        _check(library.cuInit(0), "cuInit")
        _check(library.cuDeviceGet(ctypes.byref(self._device), 0), "cuDeviceGet")
        _check(library.cuDevicePrimaryCtxRetain(ctypes.byref(self._context), self._device), "cuDevicePrimaryCtxRetain")
        self.registers_read_only = self._attribute(HOST_REGISTER_READ_ONLY) == 1

    def register(self, address: int, size: int, flags: int) -> str:
        """Page-lock memory and register it with the device; returns an error text, empty if it succeeded."""
        return self._call_in_context(
            "cuMemHostRegister_v2", ctypes.c_void_p(address), ctypes.c_size_t(size), ctypes.c_uint(flags)
        )

    def unregister(self, address: int) -> str:
        """Undo `register`; returns an error text, empty if it succeeded."""
        return self._call_in_context("cuMemHostUnregister", ctypes.c_void_p(address))

    def _attribute(self, number: int) -> int:
        value = ctypes.c_int()
        code = self._library.cuDeviceGetAttribute(ctypes.byref(value), ctypes.c_int(number), self._device)
        return 0 if code else value.value  # a driver too old to know the attribute lacks the ability too

    def uuid(self) -> str:
        """Of the device, as NVML writes it without the prefix; empty if the driver does not say."""
        raw = (ctypes.c_ubyte * 16)()
        return "" if self._library.cuDeviceGetUuid_v2(raw, self._device) else str(UUID(bytes=bytes(raw)))

    def call(self, name: str, *arguments: Any) -> tuple[str, int]:  # ctypes values
        """Call with our context current, whatever a library left on the stack. The function that failed and its code;
        0 if none did."""
        code = int(self._library.cuCtxPushCurrent_v2(self._context))
        if code:
            return "cuCtxPushCurrent", code
        code = int(getattr(self._library, name)(*arguments))
        self._library.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
        return name, code

    def _call_in_context(self, name: str, *arguments: Any) -> str:  # ctypes values
        failed, code = self.call(name, *arguments)
        return f"{failed}: error {code}" if code else ""


def open_driver(path: str = LIBRARY) -> CudaDriver | None:
    """The driver; None where no working one is installed."""
    try:
        return CudaDriver(ctypes.CDLL(path))
    except (OSError, AttributeError):  # not installed, refused, or lacks one of these functions
        return None


def _check(code: int, name: str) -> None:
    if code:
        raise OSError(f"{name}: error {code}")
