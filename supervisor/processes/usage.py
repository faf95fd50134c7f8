"""Memory and processor time of processes and of the machine; the home of psutil.

A reading of a process that is gone is None: whoever asks knows its death by other means, and first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import psutil

from mmsup.supervisor.linux.cgroup import Cgroup

_CANNOT_RUN: Final = frozenset({psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP, psutil.STATUS_DISK_SLEEP})


@dataclass(frozen=True, slots=True)
class ProcessUsage:
    """What one process uses. `pss_bytes` shares what is shared among its sharers; None where we may not look."""

    rss_bytes: int
    pss_bytes: int | None
    cpu_s: float


@dataclass(frozen=True, slots=True)
class MachineMemory:
    """The whole machine's memory. `available_bytes`: what can be had without swapping."""

    total_bytes: int
    available_bytes: int


def machine_memory() -> MachineMemory:
    """The machine now."""
    found = psutil.virtual_memory()
    return MachineMemory(found.total, found.available)


def resident_bytes(pid: int) -> int | None:
    """RSS of a process; cheap."""
    try:
        return psutil.Process(pid).memory_info().rss
    except psutil.Error:
        return None


def can_run(pid: int) -> bool:
    """Whether a process could react to a signal: it is not stopped, and not stuck in the kernel."""
    try:
        return psutil.Process(pid).status() not in _CANNOT_RUN
    except psutil.Error:
        return False


def process_usage(pid: int) -> ProcessUsage | None:
    """All we can say of a process. The kernel walks its whole address space for it: milliseconds for a large one."""
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            times = process.cpu_times()
            return ProcessUsage(process.memory_info().rss, _pss_bytes(process), times.user + times.system)
    except psutil.Error:
        return None


def footprint_bytes(group: Cgroup, pid: int) -> int | None:
    """What a worker costs: all that its control group holds beyond page cache that can be had back, else its RSS."""
    reading = group.read()
    if reading is not None:
        return max(0, reading.usage_bytes - reading.reclaimable_bytes)
    return resident_bytes(pid)


def _pss_bytes(process: psutil.Process) -> int | None:
    try:
        return process.memory_full_info().pss
    except psutil.AccessDenied:
        return None
