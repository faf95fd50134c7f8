"""GPUs and zygotes as the admission of loads sees them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from mmsup.supervisor.capacity.admission import Claim, DeviceMemory
from mmsup.supervisor.gpu.monitor import GpuMonitor
from mmsup.supervisor.processes import usage
from mmsup.supervisor.zygotes.zygote_process import Zygote

IMPORTED_BYTES: Final = {"numpy": 18 << 20, "onnxruntime": 40 << 20, "torch": 205 << 20}
"""What a zygote holds once it has imported its set: Python 3.11, numpy 2.4, onnxruntime 1.32, torch 2.13."""


def device_memory(monitor: GpuMonitor, device: str) -> DeviceMemory | None:
    """By what CUDA_VISIBLE_DEVICES of a worker holds; None while NVML does not show it, or if it has no memory of its
    own."""
    seen = monitor.find(device)
    if seen is None or not seen.total_bytes:
        return None
    label = monitor.label(device)
    return DeviceMemory(label, (label.partition(" ")[0], seen.uuid), seen.total_bytes)


def zygote_claims(zygotes: Iterable[Zygote]) -> Iterator[Claim]:
    """What each zygote holds, or is about to while it imports: the pages that its workers share with it are charged to
    it once."""
    for each in zygotes:
        held = usage.held_bytes(each.group, each.process.pid) or 0 if each.process is not None else 0
        expected = 0 if each.is_ready else IMPORTED_BYTES.get(each.key.engine_set, 0)
        if held or expected:
            yield Claim(f"the zygote of {each.key.engine_set}", max(held, expected))
