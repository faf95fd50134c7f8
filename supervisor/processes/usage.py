"""Memory and state of processes, and memory of the machine; the home of psutil.

The reading of a process that is gone is None; its exit is reported otherwise.
"""

from __future__ import annotations

import resource
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import psutil

from mmsup.ipc.memory.available_memory import available_bytes, free_swap_bytes
from mmsup.ipc.memory.kernel_file import read_kernel_file
from mmsup.supervisor.linux.cgroup import Cgroup

_PAGE_BYTES: Final = resource.getpagesize()
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
    """What a worker holds of the host without files, each page once over all workers: as its control group counts it,
    else its share of each page."""
    return footprint_bytes(group, pid) if group.folder is not None else proportional_bytes({pid})[pid] or None


def released_bytes(pid: int) -> int:
    """How much less a process has resident now than at its peak; 0 if it has exited."""
    status = f"/proc/{pid}/status"
    return max(_fields_bytes(status, ("VmHWM:",)) - _fields_bytes(status, ("VmRSS:",)), 0)


def free_bytes() -> int:
    """What can be allocated at all, swap included, within the limits of all control groups that this process is in."""
    return available_bytes() + free_swap_bytes()


def data_bytes(pid: int) -> int:
    """What RLIMIT_DATA counts of a process: private writable memory, touched or not. 0 if it has exited."""
    return _statm(pid)[2]


def private_bytes(pids: Mapping[int, object] | set[int]) -> dict[int, int]:
    """Resident memory of each process without files and shared memory; what a child has not written to since its fork
    counts to both. Cheap."""
    return {pid: resident - shared for pid in pids for resident, shared, _ in (_statm(pid),)}


def proportional_bytes(pids: Mapping[int, object] | set[int]) -> dict[int, int]:
    """The same with each page divided among those who share it. The kernel walks all pages: milliseconds per GiB."""
    return {pid: _fields_bytes(f"/proc/{pid}/smaps_rollup", ("Pss_Anon:", "SwapPss:")) for pid in pids}


def _statm(pid: int) -> tuple[int, int, int]:
    """Resident memory, the shared part of it, and private writable memory; zeros if it has exited."""
    try:
        pages = [int(each) for each in read_kernel_file(f"/proc/{pid}/statm").split()]
    except OSError:
        return 0, 0, 0
    return pages[1] * _PAGE_BYTES, pages[2] * _PAGE_BYTES, pages[5] * _PAGE_BYTES


def _fields_bytes(file: str, names: tuple[str, ...]) -> int:
    """The sum of some fields of a file of `name value kB` lines; 0 if it cannot be read."""
    try:
        lines = [line.split() for line in read_kernel_file(file).splitlines()]
    except OSError:
        return 0
    return sum(int(line[1]) * 1024 for line in lines if line[0] in names)
