"""Memory and state of processes, and memory of the machine; the home of psutil.

The reading of a process that is gone is None; its exit is reported otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from mmsup.ipc.memory.available_memory import available_bytes
from mmsup.supervisor.linux.cgroup import Cgroup, read_file

_CANNOT_RUN: Final = frozenset({psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP, psutil.STATUS_DISK_SLEEP})


@dataclass(frozen=True, slots=True)
class MachineMemory:
    """The memory of the machine. `available_bytes`: what can be allocated without swapping, within the limits of all
    control groups that this process is in."""

    total_bytes: int
    available_bytes: int


def machine_memory() -> MachineMemory:
    return MachineMemory(psutil.virtual_memory().total, available_bytes())


def resident_bytes(pid: int) -> int | None:
    """The resident set of a process; cheap."""
    try:
        return psutil.Process(pid).memory_info().rss
    except psutil.Error:
        return None


def can_run(pid: int) -> bool:
    """Whether a process can handle a signal: it is neither stopped nor blocked in the kernel."""
    try:
        return psutil.Process(pid).status() not in _CANNOT_RUN
    except psutil.Error:
        return False


def footprint_bytes(group: Cgroup, pid: int) -> int | None:
    """The memory of a worker: that of its control group without reclaimable page cache, else its resident set."""
    reading = group.read()
    if reading is not None:
        return max(0, reading.usage_bytes - reading.reclaimable_bytes)
    return resident_bytes(pid)


def held_bytes(group: Cgroup, pid: int) -> int | None:
    """What a worker holds of the host, each page once over all workers: as its control group counts it, else its
    proportional share of each page."""
    reading = group.read()
    if reading is not None:
        return max(0, reading.usage_bytes - reading.reclaimable_bytes)
    try:
        return int(psutil.Process(pid).memory_full_info().pss)
    except psutil.Error:
        return None


def released_bytes(pid: int) -> int:
    """How much less a process has resident now than at its peak; 0 if it has exited."""
    text = read_file(Path(f"/proc/{pid}/status"))
    fields = {name: value.split() for name, _, value in (line.partition(":") for line in text.splitlines())}
    peak, now = fields.get("VmHWM"), fields.get("VmRSS")
    return max(int(peak[0]) - int(now[0]), 0) * 1024 if peak and now else 0


def free_swap_bytes() -> int:
    return int(psutil.swap_memory().free)
