"""The memory of one life over its last minute. Pure: whoever samples brings the time."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

EVERY_S: Final = 1.0
MAX_SAMPLES: Final = 60
Sample = tuple[float, int, int]
"""Seconds before the end, bytes of host memory, bytes on the device."""


@dataclass(slots=True)
class MemoryHistory:
    """Samples, oldest first."""

    _samples: deque[Sample] = field(default_factory=lambda: deque[Sample](maxlen=MAX_SAMPLES))
    """With monotonic times."""

    def add(self, now_s: float, memory_bytes: int, device_bytes: int) -> None:
        """One look."""
        self._samples.append((now_s, memory_bytes, device_bytes))

    def rows(self, end_s: float) -> list[Sample]:
        """All of it, as it looks from `end_s`."""
        return [(round(end_s - at_s, 3), memory, device) for at_s, memory, device in self._samples]
