"""Memory and state of processes, and memory of the machine; the home of psutil.

The reading of a process that is gone is None; its exit is reported otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import psutil

from mmsup.ipc.memory.available_memory import available_bytes
from mmsup.supervisor.linux.cgroup import Cgroup

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
