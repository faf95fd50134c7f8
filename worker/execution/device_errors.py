"""Classifies an exception of a CUDA library: none of the device's, out of memory, or context lost. Pure: needs neither
torch nor a device.

A failed allocation leaves the context intact. Every other CUDA error is final: the context is lost, and whatever this
process runs afterwards fails or, worse, gives wrong results.
"""

from __future__ import annotations

import enum
import re
from typing import Final

_LOST_TYPES: Final = frozenset({"AcceleratorError", "DeferredCudaCallError", "CudaError"})
_MEMORY_TYPES: Final = frozenset({"OutOfMemoryError"})
_MEMORY_TEXT: Final = re.compile(
    r"cuda out of memory|cuda error: out of memory|cuda_error_out_of_memory|cudaerrormemoryallocation"
    r"|cuda failure 2: out of memory|cu(blas|dnn|solver)_status_alloc_failed"
    r"|available memory of \d+ is smaller than requested bytes|failed to allocate memory for requested buffer"
)
"""torch, the driver, onnxruntime's provider, the libraries, onnxruntime's arena (twice)."""
_LOST_TEXT: Final = re.compile(
    r"cuda error|cuda failure \d|cuda_error_|cudaerror[a-z]|cu(blas|dnn|fft|sparse|solver)_status_|cu(blas|dnn) error"
    r"|nccl error|device-side assert|illegal memory access|unspecified launch failure|uncorrectable ecc"
)
_PYTHON_ERRORS: Final = (MemoryError, ValueError, TypeError, LookupError, ArithmeticError, AssertionError, OSError)
"""No CUDA library raises these: where one mentions CUDA, the model's own code raised it."""


class DeviceFault(enum.Enum):
    NONE = "none"
    MEMORY = "memory"
    """An allocation failed; the context is intact."""
    LOST = "lost"
    """The context is lost; the process must end."""


def device_fault(error: BaseException, device: str) -> DeviceFault:
    """Decided by the name of the exception's type and by its message: the libraries are not imported here."""
    if device == "cpu" or not isinstance(error, Exception) or isinstance(error, _PYTHON_ERRORS):
        return DeviceFault.NONE
    names = {each.__name__ for each in type(error).__mro__}
    text = message_of(error).lower()
    if names & _MEMORY_TYPES or _MEMORY_TEXT.search(text):
        return DeviceFault.MEMORY
    if names & _LOST_TYPES or _LOST_TEXT.search(text):
        return DeviceFault.LOST
    return DeviceFault.NONE


def message_of(error: BaseException) -> str:
    """What `str` says of an exception of model code, or nothing where its `__str__` raises."""
    try:
        return str.__str__(str(error))  # a str itself: methods of a class derived from it are the model's
    except BaseException:  # noqa: BLE001 - a model may raise anything there too
        return ""
