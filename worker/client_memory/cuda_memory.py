"""Opens CUDA IPC handles of other processes, and copies from and to their memory. By the driver alone."""

from __future__ import annotations

import ctypes
from typing import Any, Final

from mmsup.ipc.tensors.numpy_arrays import Array
from mmsup.worker.engines.device.cuda_driver import CudaDriver

LAZY_PEER_ACCESS: Final = 1
"""CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS, the only flag there is."""


class IpcHandle(ctypes.Structure):
    """CUipcMemHandle, which is passed by value."""

    _fields_ = (("reserved", ctypes.c_char * 64),)


class DriverError(Exception):
    """The driver refused a call."""

    def __init__(self, function: str, code: int) -> None:
        super().__init__(f"{function}: error {code}")
        self.code = code


class CudaMemory:
    """Of this process's device. All methods raise DriverError."""

    def __init__(self, driver: CudaDriver) -> None:
        self._driver = driver
        self.device = driver.uuid()

    def open(self, handle: bytes) -> int:
        """The address of the memory."""
        address, given = ctypes.c_uint64(), IpcHandle.from_buffer_copy(handle)
        flags = ctypes.c_uint(LAZY_PEER_ACCESS)
        self._call("cuIpcOpenMemHandle_v2", ctypes.byref(address), given, flags)
        return address.value

    def close(self, address: int) -> None:
        self._call("cuIpcCloseMemHandle", ctypes.c_uint64(address))

    def size(self, address: int) -> int | None:
        """How many bytes of its allocation there are from an address on; None if the driver does not say."""
        base, size = ctypes.c_uint64(), ctypes.c_size_t()
        arguments = ctypes.byref(base), ctypes.byref(size), ctypes.c_uint64(address)
        _, code = self._driver.call("cuMemGetAddressRange_v2", *arguments)
        return None if code else base.value + size.value - address

    def read(self, address: int, into: Array) -> None:
        target = ctypes.c_void_p(into.ctypes.data)
        self._call("cuMemcpyDtoH_v2", target, ctypes.c_uint64(address), ctypes.c_size_t(into.nbytes))

    def write(self, address: int, data: Array) -> None:
        source = ctypes.c_void_p(data.ctypes.data)
        self._call("cuMemcpyHtoD_v2", ctypes.c_uint64(address), source, ctypes.c_size_t(data.nbytes))

    def _call(self, name: str, *arguments: Any) -> None:  # ctypes values
        failed, code = self._driver.call(name, *arguments)
        if code:
            raise DriverError(failed, code)
