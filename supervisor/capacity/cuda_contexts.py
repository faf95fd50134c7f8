"""What a CUDA context takes of each GPU, as it was measured there; a constant where it was not. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from mmsup.supervisor.capacity.footprint import CUDA_CONTEXT_BYTES

LEAST_BYTES: Final = 64 << 20
"""A smaller difference is none: the two figures are of different moments."""
MAX_DEVICES: Final = 64


class CudaContexts:
    def __init__(self, known: Mapping[str, int]) -> None:
        """`known`: by device, as `by_device` gives it."""
        self.by_device = dict(known)
        """By UUID, and by `cuda:N` as it was last; the least that was seen of each."""

    def of(self, device: str) -> int:
        return self.by_device.get(device, CUDA_CONTEXT_BYTES)

    def note(self, names: Iterable[str], held_bytes: int, allocated_bytes: int) -> bool:
        """A worker there holds so much as NVML counts, of which its engine has allocated so much; whether that is news.
        `names`: of the device."""
        found = held_bytes - allocated_bytes
        if not allocated_bytes or found < LEAST_BYTES:
            return False
        before = dict(self.by_device)
        for name in names:
            if name in before or len(self.by_device) < MAX_DEVICES:
                self.by_device[name] = min(found, before.get(name, found))
        return self.by_device != before
