"""What an exception of a CUDA library means, and how a memory budget is divided. Pure: neither torch nor a device.

An allocation that failed leaves the context intact. Every other CUDA error is final: the context is lost, whatever
is done next in this process fails or, worse, answers nonsense. So there are three words and no shades between them.
"""

from __future__ import annotations

import enum
import re
from typing import Final

from mmsup.ipc.errors import ModelError

CONTEXT_BYTES: Final = 640 << 20
"""A context with the libraries' code in it: 612 MiB on an H100 (docs/benchmarks/gpu.md). A process cannot tell its own
from its neighbours'."""
RESERVE_BYTES: Final = 128 << 20
"""Library workspaces (cuBLAS, cuDNN) that no allocator of ours counts: 106 MiB there."""

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
"""No CUDA library raises these; a text of CUDA in one is the model's own."""


class DeviceFault(enum.Enum):
    """What happened to the device, as far as this process is concerned."""

    NONE = "none"
    MEMORY = "memory"
    """An allocation was refused; the context is intact."""
    LOST = "lost"
    """The context is gone; the process must end."""


def device_fault(error: BaseException, device: str) -> DeviceFault:
    """The meaning of an exception, from its type's name and its message: the libraries are not imported here."""
    if device == "cpu" or not isinstance(error, Exception) or isinstance(error, _PYTHON_ERRORS):
        return DeviceFault.NONE
    names = {each.__name__ for each in type(error).__mro__}
    text = str(error).lower()
    if names & _MEMORY_TYPES or _MEMORY_TEXT.search(text):
        return DeviceFault.MEMORY
    if names & _LOST_TYPES or _LOST_TEXT.search(text):
        return DeviceFault.LOST
    return DeviceFault.NONE


def arena_limit(budget_bytes: int) -> int:
    """How much of a model's budget its allocator may take: the context and the libraries' own are not its."""
    left = budget_bytes - CONTEXT_BYTES - RESERVE_BYTES
    if left <= 0:
        least = CONTEXT_BYTES + RESERVE_BYTES
        raise ModelError("does_not_fit", f"gpu_memory is {budget_bytes} bytes; a CUDA context alone takes {least}")
    return left


def memory_fraction(budget_bytes: int, total_bytes: int) -> float:
    """The same as a share of the device, as torch wants it."""
    return min(arena_limit(budget_bytes) / total_bytes, 1.0)
