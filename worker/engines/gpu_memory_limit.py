"""A model's share of its device's memory, held by torch's allocator for whoever calls torch in this process."""

from __future__ import annotations

import sys
from typing import Any

from mmsup.ipc.specs import ModelSpec
from mmsup.worker.execution.device_errors import memory_fraction


def enforce_gpu_memory(spec: ModelSpec) -> None:
    """Let torch, if it is imported and sees the device, refuse what goes beyond `gpu_memory`. ModelError `does_not_fit`
    if that is too little for a context. To be called before the model takes any."""
    torch: Any = sys.modules.get("torch")  # a model need not have it, and we never import it for one
    if spec.device == "cpu" or not spec.gpu_memory_bytes or torch is None or not torch.cuda.is_available():
        return
    total_bytes = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(memory_fraction(spec.gpu_memory_bytes, total_bytes), 0)
