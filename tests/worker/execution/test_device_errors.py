"""Exceptions of CUDA libraries, classified without a device."""

from __future__ import annotations

import pytest

from mmsup.worker.execution.device_errors import DeviceFault, device_fault


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
def test_a_failed_allocation_leaves_the_context_intact(error: Exception) -> None:
    assert device_fault(error, "cuda:0") is DeviceFault.MEMORY


@pytest.mark.parametrize("error", LOST)
def test_every_other_cuda_error_is_final(error: Exception) -> None:
    assert device_fault(error, "cuda:0") is DeviceFault.LOST


@pytest.mark.parametrize("error", NONE)
def test_an_exception_of_no_cuda_library_is_no_device_fault(error: BaseException) -> None:
    assert device_fault(error, "cuda:0") is DeviceFault.NONE


@pytest.mark.parametrize("error", [*MEMORY, *LOST])
def test_a_model_on_the_cpu_has_no_device_fault(error: Exception) -> None:
    assert device_fault(error, "cpu") is DeviceFault.NONE
