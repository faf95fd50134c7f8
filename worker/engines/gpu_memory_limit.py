"""Enforces `gpu_memory`, the model's budget of device memory, through the allocators of torch and onnxruntime."""

from __future__ import annotations

import sys
from typing import Any, Final

from mmsup.ipc.errors import ModelError
from mmsup.ipc.specs import ModelSpec

CONTEXT_BYTES: Final = 640 << 20
"""A context with the libraries' code in it: 612 MiB on an H100 (docs/benchmarks/gpu.md). A process cannot tell its own
context from those of other processes."""
RESERVE_BYTES: Final = 128 << 20
"""Library workspaces (cuBLAS, cuDNN) that neither allocator counts: 106 MiB there."""


def arena_limit(budget_bytes: int) -> int:
    """How much of a model's budget its allocator may take: the context and the library workspaces come off it first.
    ModelError `does_not_fit` if nothing is left. Pure."""
    left = budget_bytes - CONTEXT_BYTES - RESERVE_BYTES
    if left <= 0:
        least = CONTEXT_BYTES + RESERVE_BYTES
        raise ModelError("does_not_fit", f"gpu_memory is {budget_bytes} bytes; a CUDA context alone takes {least}")
    return left


def memory_fraction(budget_bytes: int, total_bytes: int) -> float:
    """The same as a share of the device's memory, as torch wants it. Pure."""
    return min(arena_limit(budget_bytes) / total_bytes, 1.0)


def enforce_gpu_memory(spec: ModelSpec) -> None:
    """Limit torch's allocator, if torch is imported and sees the device. Must be called before the model allocates."""
    torch: Any = sys.modules.get("torch")  # a model need not use it, and it is never imported for one that does not
    if spec.device == "cpu" or not spec.gpu_memory_bytes or torch is None or not torch.cuda.is_available():
        return
    total_bytes = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(memory_fraction(spec.gpu_memory_bytes, total_bytes), 0)
