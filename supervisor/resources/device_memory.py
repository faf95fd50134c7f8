"""A GPU as the admission of loads sees it."""

from __future__ import annotations

from mmsup.supervisor.capacity.admission import DeviceMemory
from mmsup.supervisor.gpu.monitor import GpuMonitor


def device_memory(monitor: GpuMonitor, device: str) -> DeviceMemory | None:
    """By what CUDA_VISIBLE_DEVICES of a worker holds; None while NVML does not show it, or if it has no memory of its
    own."""
    seen = monitor.find(device)
    if seen is None or not seen.total_bytes:
        return None
    label = monitor.label(device)
    return DeviceMemory(label, (label.partition(" ")[0], seen.uuid), seen.total_bytes)
