"""GPUs and zygotes as the admission of loads sees them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from mmsup.supervisor.capacity.admission import Claim, DeviceMemory
from mmsup.supervisor.gpu.monitor import GpuMonitor
from mmsup.supervisor.processes import usage
from mmsup.supervisor.zygotes.zygote_process import Zygote

IMPORTED_BYTES: Final = {"numpy": 18 << 20, "onnxruntime": 40 << 20, "torch": 205 << 20}
"""What a zygote holds once it has imported its set: Python 3.11, numpy 2.4, onnxruntime 1.32, torch 2.13."""
FORKED_BYTES: Final = 8 << 20
"""What a worker that is forked of it takes at least."""

MEASURED_S: Final = 0.5
"""Between two measurements of one that is ready: it hardly changes, and every load asks."""


def device_memory(monitor: GpuMonitor, device: str) -> DeviceMemory | None:
    """By what CUDA_VISIBLE_DEVICES of a worker holds; None while NVML does not show it, or if it has no memory of its
    own."""
    seen = monitor.find(device)
    if seen is None or not seen.total_bytes:
        return None
    label = monitor.label(device)
    return DeviceMemory(label, (label.partition(" ")[0], seen.uuid), seen.total_bytes)


class ZygoteClaims:
    """What each zygote holds, or is about to while it imports: the pages that its workers share with it are charged to
    it once."""

    def __init__(self, zygotes: Callable[[], Iterable[Zygote]]) -> None:
        self._zygotes = zygotes
        self._readings: dict[str, tuple[float, int]] = {}
        """By token of a zygote that is ready: when it was measured, and what it held."""

    def __call__(self) -> Iterator[Claim]:
        zygotes = list(self._zygotes())
        self._readings = {each.token: self._readings[each.token] for each in zygotes if each.token in self._readings}
        for each in zygotes:
            held = self._held_bytes(each)
            expected = 0 if each.is_ready else IMPORTED_BYTES.get(each.key.engine_set, 0)
            if held or expected:
                yield Claim(f"the zygote of {each.key.engine_set}", max(held, expected))

    def _held_bytes(self, zygote: Zygote) -> int:
        if zygote.process is None:
            return 0
        now_s, known = time.monotonic(), self._readings.get(zygote.token)
        if known is not None and now_s < known[0] + MEASURED_S:
            return known[1]
        held = usage.held_bytes(zygote.group, zygote.process.pid) or 0
        if zygote.is_ready:
            self._readings[zygote.token] = now_s, held
        return held
