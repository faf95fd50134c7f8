"""What a caller is told of an exception in a model: a code, and a text without our insides. Pure.

The trace goes to the worker's own output, which `ctl logs` shows. The text names no path, no address, no class.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from mmsup.ipc.errors import MmsupError
from mmsup.ipc.specs import ModelSpec
from mmsup.worker.execution.device_errors import DeviceFault, device_fault

TEXT_LIMIT: Final = 500
_PATH: Final = re.compile(r"(?<![\w:/.~-])~?/(?:[^\s/'\"`<>|;,:()\[\]{}]+/)+([^\s/'\"`<>|;,:()\[\]{}]*)")
_ADDRESS: Final = re.compile(r"\b0x[0-9a-fA-F]{4,}\b")
_HOST_MEMORY_TEXTS: Final = ("bad_alloc", "defaultcpuallocator: can't allocate memory", "failed to allocate memory")
"""How native code words an allocation that failed: C++ (onnxruntime too), torch on the CPU, onnxruntime's arena."""


@dataclass(frozen=True, slots=True)
class ModelFailure:
    """Why a run or a load gave no result."""

    code: str
    text: str
    device_fault: DeviceFault = DeviceFault.NONE


def scrub(text: str) -> str:
    """A text fit for a remote client: one line, bounded, paths cut to their last part, no addresses."""
    line = " ".join(text.split())
    line = _ADDRESS.sub("(address)", _PATH.sub(r"\1", line))
    line = "".join(each for each in line if each.isprintable())
    return line if len(line) <= TEXT_LIMIT else line[: TEXT_LIMIT - 1] + "…"


def failure_of(error: BaseException, spec: ModelSpec) -> ModelFailure:
    """The answer to whoever's request met this exception."""
    if isinstance(error, MmsupError):
        return ModelFailure(error.code, scrub(error.text))
    device = device_fault(error, spec.device)
    if device is DeviceFault.LOST:
        return ModelFailure("gpu_fault", scrub(f"the device of model '{spec.name}' failed: {error}"), device)
    if device is DeviceFault.MEMORY:
        return ModelFailure("gpu_oom", f"model '{spec.name}' ran out of device memory", device)
    if is_out_of_memory(error):
        cap = f" under its cap of {spec.memory_bytes} bytes" if spec.memory_bytes else ""
        return ModelFailure("inference_failed", f"model '{spec.name}' ran out of memory{cap}")
    said = str(error).strip() or f"{type(error).__name__} without a message"
    return ModelFailure("inference_failed", scrub(f"model '{spec.name}' failed: {said}"))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether host memory was refused, by Python or in native code; the process lives on."""
    if isinstance(error, MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, Exception) and any(each in text for each in _HOST_MEMORY_TEXTS)
