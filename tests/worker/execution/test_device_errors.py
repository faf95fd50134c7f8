"""What an exception of a CUDA library means; no device is needed to read it."""

from __future__ import annotations

import pytest

from mmsup.ipc.errors import ModelError
from mmsup.worker.execution.device_errors import (
    CONTEXT_BYTES,
    RESERVE_BYTES,
    DeviceFault,
    arena_limit,
    device_fault,
    memory_fraction,
)


class OutOfMemoryError(RuntimeError):
    """As torch names it."""


class AcceleratorError(RuntimeError):
    """As torch names it."""


class RuntimeException(Exception):  # noqa: N818 - as onnxruntime names it
    pass


MEMORY = [
    OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79 GiB"),
    OutOfMemoryError("allocation on device"),
    AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeException("CUDA failure 2: out of memory ; GPU=0 ; hostname=x ; expr=cudaMalloc((void**)&p, size);"),
    RuntimeException("bfc_arena.cc:376 Failed to allocate memory for requested buffer of size 123"),
    RuntimeException("Available memory of 1000 is smaller than requested bytes of 2000"),
]
LOST = [
    AcceleratorError("CUDA error: device-side assert triggered"),
    AcceleratorError("anything at all"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: unspecified launch failure"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"),
    RuntimeException("CUDA failure 700: an illegal memory access was encountered ; GPU=0"),
    RuntimeException("CUBLAS failure 13: CUBLAS_STATUS_EXECUTION_FAILED"),
]
NONE = [
    RuntimeError("expected scalar type Float but found Double"),
    ValueError("CUDA error: says the model"),
    KeyError("cudaErrorUnknown"),
    MemoryError("CUDA out of memory"),
    SystemExit("CUDA error: x"),
]


@pytest.mark.parametrize("error", MEMORY)
def test_a_refused_allocation_leaves_the_worker_alive(error: Exception) -> None:
    assert device_fault(error, "cuda:0") is DeviceFault.MEMORY


@pytest.mark.parametrize("error", LOST)
def test_every_other_cuda_error_is_final(error: Exception) -> None:
    assert device_fault(error, "cuda:0") is DeviceFault.LOST


@pytest.mark.parametrize("error", NONE)
def test_what_no_cuda_library_raises_is_no_device_fault(error: BaseException) -> None:
    assert device_fault(error, "cuda:0") is DeviceFault.NONE


@pytest.mark.parametrize("error", [*MEMORY, *LOST])
def test_a_model_on_the_cpu_has_no_device_to_lose(error: Exception) -> None:
    assert device_fault(error, "cpu") is DeviceFault.NONE


def test_a_budget_leaves_room_for_the_context() -> None:
    assert arena_limit(4 << 30) == (4 << 30) - CONTEXT_BYTES - RESERVE_BYTES
    assert memory_fraction(4 << 30, 16 << 30) == arena_limit(4 << 30) / (16 << 30)
    assert memory_fraction(64 << 30, 16 << 30) == 1.0


def test_a_budget_below_a_context_is_refused() -> None:
    with pytest.raises(ModelError, match="a CUDA context alone takes") as caught:
        arena_limit(CONTEXT_BYTES)
    assert caught.value.code == "does_not_fit"
