"""`pb_utils.Tensor`: an array under a name, exchanged with other libraries by DLPack.

A tensor on a device is that of the library that made it; nothing is copied until it is an output.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any, Final

import ml_dtypes
import numpy as np

from mmsup.ipc.tensors.numpy_arrays import Array, datatype_of
from mmsup.worker.engines.triton_python.api.datatypes import numpy_to_triton_type
from mmsup.worker.engines.triton_python.api.errors import TritonModelException

DEVICE_CPU: Final = 1
"""DLPack's number of host memory."""
DEVICE_CUDA_HOST: Final = 3
_HOST_DEVICES: Final = (DEVICE_CPU, DEVICE_CUDA_HOST)
_BF16: Final = np.dtype(ml_dtypes.bfloat16)
Capsule = Any  # a PyCapsule, which has no type of its own


class BackendTensor:
    __slots__ = ("_array", "_device_tensor", "_name")

    def __init__(self, name: str, numpy_array: Array) -> None:
        self._name = _checked_name(name)
        if not isinstance(numpy_array, np.ndarray):
            raise TypeError(f"Tensor '{name}' is made of a numpy array, not of a {type(numpy_array).__name__}")
        if datatype_of(numpy_array) is None:
            raise TritonModelException(f"Tensor '{name}' cannot be of dtype {numpy_array.dtype}")
        self._array: Array | None = numpy_array if numpy_array.flags.c_contiguous else np.ascontiguousarray(numpy_array)
        self._device_tensor: Any = None  # of torch, on a device

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> Array:
        if self._array is None:
            raise TritonModelException(f"Tensor '{self._name}' is stored in GPU and cannot be converted to NumPy.")
        return self._array

    def triton_dtype(self) -> int | None:
        if self._array is None:
            return numpy_to_triton_type(_on_host(self._device_tensor[:0]).dtype)
        return numpy_to_triton_type(self._array.dtype)

    def shape(self) -> list[int]:
        return [int(each) for each in (self._device_tensor if self._array is None else self._array).shape]

    def is_cpu(self) -> bool:
        return self._array is not None

    def to_dlpack(self) -> Capsule:
        return self.__dlpack__()

    @staticmethod
    def from_dlpack(name: str, tensor: Any) -> BackendTensor:  # a capsule, or what has __dlpack__
        return from_dlpack(name, tensor)

    def __dlpack__(self, stream: Any = None, **more: Any) -> Capsule:  # as the array API has it
        if self._array is None:
            return self._device_tensor.__dlpack__(stream=stream)
        if self._array.dtype.kind in "OSU":
            raise TritonModelException("DLPack does not have support for string tensors.")
        if self._array.dtype == _BF16:
            return _torch(self._name).from_numpy(self._array.view(np.int16)).view(_torch("").bfloat16).__dlpack__()
        if not self._array.flags.writeable:  # which DLPack cannot say
            self._array = self._array.copy()
        return self._array.__dlpack__(**more)

    def __dlpack_device__(self) -> tuple[int, int]:
        if self._array is None:
            kind, number = self._device_tensor.__dlpack_device__()
            return int(kind), int(number)
        return DEVICE_CPU, 0

    def host_array(self) -> Array:
        """Its values in host memory, copied from the device if they are there."""
        return _on_host(self._device_tensor) if self._array is None else self._array


def from_dlpack(name: str, tensor: Any) -> BackendTensor:  # as the method
    """A tensor over memory of another library; TritonModelException for one that is not contiguous in C order."""
    _checked_name(name)
    if type(tensor).__name__ == "PyCapsule":
        tensor = _CapsuleHolder(tensor)
    elif not (hasattr(tensor, "__dlpack__") and hasattr(tensor, "__dlpack_device__")):
        raise TritonModelException(
            f"Tensor '{name}': a {type(tensor).__name__} is no DLPack capsule, and has no __dlpack__ and "
            "__dlpack_device__"
        )
    if tensor.__dlpack_device__()[0] in _HOST_DEVICES:
        return BackendTensor(name, _contiguous(name, _array_of(tensor)))
    held = _torch(name).from_dlpack(tensor)
    if not held.is_contiguous():
        raise TritonModelException(f"Tensor '{name}' is not contiguous in C order, as DLPack tensors have to be")
    made = BackendTensor(name, np.empty(0, np.uint8))
    made._array, made._device_tensor = None, held
    return made


def _array_of(tensor: Any) -> Array:  # what has __dlpack__, in host memory
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(tensor, torch.Tensor):
        return _on_host(tensor)
    try:
        return np.from_dlpack(tensor)
    except (BufferError, RuntimeError):  # bfloat16, which numpy does not know
        return _on_host(_torch("").from_dlpack(tensor))


def _on_host(tensor: Any) -> Array:  # of torch
    torch = _torch("")
    held = tensor.detach().cpu()
    if held.dtype == torch.bfloat16:
        array: Array = held.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return array
    return np.asarray(held.numpy())


def _contiguous(name: str, array: Array) -> Array:
    if not array.flags.c_contiguous:
        raise TritonModelException(f"Tensor '{name}' is not contiguous in C order, as DLPack tensors have to be")
    return array


def _torch(name: str) -> Any:  # the module
    torch = sys.modules.get("torch")
    if torch is None:
        raise TritonModelException(
            f"Tensor '{name}' is on a device, or of BF16: torch has to be imported by the model to exchange it"
        )
    return torch


def _checked_name(name: str) -> str:
    if not isinstance(name, str) or not name:
        raise TritonModelException("Tensor name cannot be an empty string.")
    return name


class _CapsuleHolder:
    """A capsule as an object of the array API, whose consumers take no bare capsules."""

    def __init__(self, capsule: Capsule) -> None:
        self._capsule = capsule

    def __dlpack__(self, **_: Any) -> Capsule:  # stream, maximal version, device, copy
        return self._capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        """From the capsule's structure: a pointer to the data, then the number of the kind of device, and of it."""
        get = ctypes.pythonapi.PyCapsule_GetPointer
        get.restype, get.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
        address: int = get(self._capsule, b"dltensor")  # ValueError for one that was consumed
        device = (ctypes.c_int32 * 2).from_address(address + ctypes.sizeof(ctypes.c_void_p))
        return device[0], device[1]
