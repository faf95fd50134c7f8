"""Whether a worker can use memory of a GPU that a client shares, and what is said where it cannot. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from mmsup.ipc.messages.data import DeviceRegion
from mmsup.worker.execution.model_errors import ModelFailure

NO_MEMORY: Final = 2
"""CUDA_ERROR_OUT_OF_MEMORY."""
LOST: Final = frozenset({46, 214, 219, 226, *range(700, 720), 999}) - {
    *(704, 705, 708, 711, 712, 713)  # states of calls, which harm no context
}
"""Errors after which nothing works in this context any more, or the device is gone: an earlier kernel's, mostly."""
REASONS: Final = {
    1: "it is no such memory",
    NO_MEMORY: "the device has no memory left for it",
    101: "its device is not there",
    201: "it was opened in another context: a process cannot open its own memory",
    208: "it is open already",
    217: "its device cannot be reached from the one of the model",
    400: "its handle is not valid, or its owner is gone",
    801: "this device or container does not share memory between processes",
}


def device_failure(region: DeviceRegion, own: str | None, model: str) -> ModelFailure | None:
    """Why a worker on the GPU `own` (its UUID; empty: the driver does not say; None: on the CPU) cannot use a region;
    None if it can."""
    if own is not None and own and bare_uuid(own) == bare_uuid(region.device):
        return None
    where = "the CPU" if own is None else f"GPU-{bare_uuid(own)}" if own else "a GPU whose driver does not name it"
    text = f"{tensor_text(region, model)} is in shared memory region '{region.region:.200}' of device {region.number}"
    text = f"{text} ({region.device}), but the model runs on {where}"
    return ModelFailure("bad_request", f"{text}: use memory of that device, or send the tensor")


def bare_uuid(uuid: str) -> str:
    """As the driver gives it: NVML writes `GPU-` or `MIG-` before it."""
    return uuid.removeprefix("GPU-").removeprefix("MIG-").lower()


def range_failure(region: DeviceRegion, size: int | None, model: str) -> ModelFailure | None:
    """Why a tensor is not in memory of `size` bytes (None: not known); None if it is."""
    end = region.offset + region.size
    if size is None or end <= size:
        return None
    text = f"{tensor_text(region, model)} needs {end} bytes of shared memory region '{region.region:.200}'"
    return ModelFailure("bad_request", f"{text}, whose memory has {size}: it was registered with too large a byte_size")


def driver_failure(region: DeviceRegion, code: int, model: str) -> ModelFailure:
    """What the client is told when the driver refuses to open or to copy."""
    text = f"{tensor_text(region, model)}: shared memory region '{region.region:.200}' of device {region.number}"
    if code in LOST:
        return ModelFailure("gpu_fault", f"{text} was not copied: the device of the model failed (CUDA error {code})")
    reason = f"{REASONS[code]} (CUDA error {code})" if code in REASONS else f"CUDA error {code}"
    return ModelFailure("gpu_oom" if code == NO_MEMORY else "bad_request", f"{text} cannot be used: {reason}")


def no_driver_failure(region: DeviceRegion, model: str) -> ModelFailure:
    text = f"{tensor_text(region, model)} is in shared memory region '{region.region:.200}' of device {region.number}"
    return ModelFailure("unsupported", f"{text}, and the CUDA driver does not work in the process of the model")


def output_failure(region: DeviceRegion, size: int, model: str) -> ModelFailure | None:
    """Why an output of this size does not fit where the client wants it; None if it does."""
    if size <= region.size:
        return None
    text = f"{tensor_text(region, model)} has {size} bytes, but shared_memory_byte_size {region.size}"
    return ModelFailure("bad_request", text)


def tensor_text(region: DeviceRegion, model: str) -> str:
    if region.place < 0:
        return f"output '{region.tensor}' of model '{model}'"
    return f"input '{region.tensor}' for model '{model}'"


def outputs_of(regions: Sequence[DeviceRegion]) -> list[DeviceRegion]:
    return [each for each in regions if each.place < 0]
