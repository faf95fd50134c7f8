"""Whether a GPU has its memory back after the end of a worker, so that the next one can be loaded there. Pure.

A death is known before the driver has freed what the dead one held; a successor that comes at once meets an
out-of-memory that is not its own. So a load waits until a look at the device, asked for after the death, accounts for
as much memory as the last one before it: what is free, and what living processes hold. That others have grown meanwhile
does not matter where NVML shows who holds what. Where it shows nobody, the worker's own word counts for its share.

A load that needs no more than is free does not wait. One that has waited for WAIT_S is refused if it is known to need
more than is free; what nobody knows is tried, and the engine says what it meets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mmsup.supervisor.gpu.inventory import Gpu

WAIT_S: Final = 10.0
GIVE_UP_S: Final = 600.0
"""Memory that is not back by then will not come, and what was counted before says nothing any more."""
SLACK_BYTES: Final = 64 << 20
"""What drivers and contexts take and give by themselves beside any one process."""


@dataclass(frozen=True, slots=True)
class GpuUsage:
    """What one worker was seen to hold of a device, and what there was in all: free, or held by somebody."""

    held_bytes: int = 0
    counted_bytes: int = 0


@dataclass(frozen=True, slots=True)
class PendingRelease:
    """What a device has to give back after an end. Times are monotonic seconds."""

    pid: int
    usage: GpuUsage
    at_s: float


@dataclass(frozen=True, slots=True)
class GpuSnapshot:
    """A device as it was when NVML was asked."""

    gpu: Gpu
    asked_s: float


@dataclass(frozen=True, slots=True)
class AwaitRelease:
    """Not yet: look again."""


@dataclass(frozen=True, slots=True)
class InsufficientMemory:
    """It was waited for in vain."""

    need_bytes: int
    free_bytes: int


def usage_of(pid: int, gpu: Gpu, said_bytes: int) -> GpuUsage:
    """Of a worker that lives; `said_bytes`: its own word, which counts where NVML shows nobody."""
    seen = {each.pid: each.held_bytes for each in gpu.held}
    return GpuUsage(seen.get(pid, said_bytes), gpu.free_bytes + (sum(seen.values()) if seen else said_bytes))


def is_released(debt: PendingRelease, gpu: Gpu) -> bool:
    """Whether a device, seen after the end, has what the dead one held."""
    living = sum(each.held_bytes for each in gpu.held if each.pid != debt.pid)
    return gpu.free_bytes + living + SLACK_BYTES >= debt.usage.counted_bytes


def is_settled(debt: PendingRelease, sight: GpuSnapshot) -> bool:
    """Whether nobody has to look after it any longer."""
    return debt.at_s <= sight.asked_s and (is_released(debt, sight.gpu) or sight.asked_s > debt.at_s + GIVE_UP_S)


def check_memory(
    need_bytes: int | None, debts: Sequence[PendingRelease], sight: GpuSnapshot, now_s: float
) -> AwaitRelease | InsufficientMemory | None:
    """What a load has to do that needs so much (None: nobody knows); None: go on."""
    if any(each.at_s > sight.asked_s for each in debts):
        return AwaitRelease()
    owing = [each for each in debts if not is_released(each, sight.gpu)]
    if not owing or (need_bytes is not None and need_bytes <= sight.gpu.free_bytes):
        return None
    if any(now_s < each.at_s + WAIT_S for each in owing):
        return AwaitRelease()
    return InsufficientMemory(need_bytes, sight.gpu.free_bytes) if need_bytes is not None else None
