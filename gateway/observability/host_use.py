"""How busy the machine is, for dashboards: processors from /proc/stat, memory as the machine or container has it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mmsup.ipc.memory import available_memory

STAT: Final = Path("/proc/stat")
_IDLE: Final = slice(3, 5)
"""Of the first line's times: idle, and waiting for input or output."""
_COUNTED: Final = 8
"""The first so many; those of guests are in them already."""


@dataclass(frozen=True, slots=True)
class HostUse:
    utilization: float
    total_bytes: int
    used_bytes: int


class HostWatch:
    def __init__(self, stat: Path = STAT) -> None:
        self._stat = stat
        self._busy, self._all = _times(stat)

    def look(self) -> HostUse | None:
        """Since the last look; None where the kernel does not say."""
        try:
            busy, every = _times(self._stat)
            total, free = available_memory.total_bytes(), available_memory.available_bytes()
        except OSError:
            return None
        share = (busy - self._busy) / (every - self._all) if every > self._all else 0.0
        self._busy, self._all = busy, every
        return HostUse(min(max(share, 0.0), 1.0), total, max(total - free, 0))


def _times(stat: Path) -> tuple[int, int]:
    """Of all processors together, since the start of the machine: busy, and all."""
    with stat.open() as file:
        times = [int(each) for each in file.readline().split()[1 : 1 + _COUNTED]]
    return sum(times) - sum(times[_IDLE]), sum(times)
