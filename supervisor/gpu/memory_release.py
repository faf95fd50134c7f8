"""Whether a GPU has released the memory of a worker that exited, so that the next one can be loaded there. Pure.

An exit is known before the driver has freed the memory, and a successor that starts at once would fail for lack of it.
So a load waits until a snapshot of the device, requested after the exit, accounts for as much memory as the last one
before it: free, or held by living processes. That others have grown meanwhile does not matter where NVML shows which
process holds what. Where it shows none, the worker's own figure counts as its share.

A load that needs no more than is free does not wait. One that has waited for WAIT_S is refused if it is known to need
more than is free; if its need is unknown it is tried, and the engine reports what happens.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from typing import Final

from mmsup.supervisor.gpu.inventory import Gpu

WAIT_S: Final = 10.0
GIVE_UP_S: Final = 600.0
"""Memory that is not released by then never will be, and older figures mean nothing any more."""
SLACK_BYTES: Final = 64 << 20
"""What drivers and contexts take and release by themselves."""
MAX_PENDING: Final = 64
"""Of one device; it may be long before NVML answers again."""


@dataclass(frozen=True, slots=True)
class GpuUsage:
    """What one worker was seen to hold of a device, and all memory accounted for there: free or held by a process."""

    held_bytes: int = 0
    counted_bytes: int = 0
    source: str = field(default="", compare=False)
    """Who says what it holds: `nvml`, or `self`, its own allocator; empty: nobody."""


@dataclass(frozen=True, slots=True)
class PendingRelease:
    """Memory that a device has to release after an exit. Times are monotonic seconds."""

    pid: int
    usage: GpuUsage
    at_s: float


@dataclass(frozen=True, slots=True)
class GpuSnapshot:
    gpu: Gpu
    asked_s: float


@dataclass(frozen=True, slots=True)
class AwaitRelease:
    """Wait for the next snapshot."""


@dataclass(frozen=True, slots=True)
class InsufficientMemory:
    """It has not been released in time."""

    need_bytes: int
    free_bytes: int


MemoryCheck = AwaitRelease | InsufficientMemory | None
"""None: the load can go on."""


def usage_of(pids: Set[int], gpu: Gpu, own_bytes: int) -> GpuUsage:
    """Of a living worker with these processes; `own_bytes`: its own figure, which counts where NVML shows none."""
    seen = {each.pid: each.held_bytes for each in gpu.held}
    counted = gpu.free_bytes + (sum(seen.values()) if seen else own_bytes)
    if seen.keys() & pids:
        return GpuUsage(sum(seen[pid] for pid in seen.keys() & pids), counted, "nvml")
    return GpuUsage(own_bytes, counted, "self" if own_bytes else "")


def is_released(pending: PendingRelease, gpu: Gpu) -> bool:
    """Whether a device, seen after the exit, has released the memory."""
    living = sum(each.held_bytes for each in gpu.held if each.pid != pending.pid)
    return gpu.free_bytes + living + SLACK_BYTES >= pending.usage.counted_bytes


def is_settled(pending: PendingRelease, snapshot: GpuSnapshot) -> bool:
    """Whether it can be forgotten: it is released, or will never be."""
    is_late = snapshot.asked_s > pending.at_s + GIVE_UP_S
    return pending.at_s <= snapshot.asked_s and (is_released(pending, snapshot.gpu) or is_late)


def check_memory(
    need_bytes: int | None, pending: Sequence[PendingRelease], snapshot: GpuSnapshot, now_s: float
) -> MemoryCheck:
    """Whether a load that needs so much can go on; `need_bytes` None: unknown."""
    if any(each.at_s > snapshot.asked_s for each in pending):
        return AwaitRelease()
    missing = [each for each in pending if not is_released(each, snapshot.gpu)]
    if not missing or (need_bytes is not None and need_bytes <= snapshot.gpu.free_bytes):
        return None
    if any(now_s < each.at_s + WAIT_S for each in missing):
        return AwaitRelease()
    return InsufficientMemory(need_bytes, snapshot.gpu.free_bytes) if need_bytes is not None else None


class PendingReleases:
    def __init__(self) -> None:
        self._by_device: defaultdict[str, list[PendingRelease]] = defaultdict(list)

    def add(self, device: str, pid: int, usage: GpuUsage) -> None:
        pending = self._by_device[device]
        pending.append(PendingRelease(pid, usage, time.monotonic()))
        del pending[:-MAX_PENDING]

    def has_any(self, device: str) -> bool:
        return bool(self._by_device.get(device))

    def check(self, device: str, need_bytes: int | None, snapshot: GpuSnapshot) -> MemoryCheck:
        """`check_memory` for a load on this device, now."""
        return check_memory(need_bytes, self._by_device.get(device, ()), snapshot, time.monotonic())

    def settle(self, snapshots: dict[str, GpuSnapshot]) -> None:
        """Forget those that are settled by new snapshots."""
        for device, snapshot in snapshots.items():
            if device in self._by_device:
                self._by_device[device] = [each for each in self._by_device[device] if not is_settled(each, snapshot)]
