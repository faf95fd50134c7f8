"""Whether a GPU is set aside: so many GPU faults within a period that it is the device, not a model. Pure.

A fault of a context is as a rule the model's own doing (an index out of bounds in a kernel), and ends its process
alone; a device that is ill does the same to whoever computes on it. A worker cannot be believed either way. So three
faults count against the device if workers of more than one model met them, or if the driver itself counts memory errors
there or does not list it any more. One model alone is given up as any that dies again and again (restart.py), and takes
no device from its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

MIN_FAULTS: Final = 3
PERIOD_S: Final = 600.0
MIN_MODELS: Final = 2


@dataclass(frozen=True, slots=True)
class GpuFault:
    """One worker that left with a GPU fault. `at_s`: monotonic seconds."""

    at_s: float
    model: str


def recent_faults(faults: Sequence[GpuFault], now_s: float) -> tuple[GpuFault, ...]:
    """Those that still count, oldest first: each model's last ones, so that a loop of one hides no other."""
    fresh = [each for each in faults if each.at_s > now_s - PERIOD_S]
    kept = [each for place, each in enumerate(fresh) if _count_of(fresh[place + 1 :], each.model) < MIN_FAULTS]
    return tuple(kept)


def cordon_reason(faults: Sequence[GpuFault], driver_says: str, now_s: float) -> str:
    """Why nothing new shall go to a device; empty if it may. `driver_says`: what it counts against the device, if
    anything."""
    counted = recent_faults(faults, now_s)
    models = sorted({each.model for each in counted})
    if len(counted) < MIN_FAULTS or (len(models) < MIN_MODELS and not driver_says):
        return ""
    whose = f"workers of {', '.join(models)}"
    return f"{len(counted)} GPU faults within {PERIOD_S / 60:g} min, of {whose}" + (driver_says and f"; {driver_says}")


def _count_of(faults: Sequence[GpuFault], model: str) -> int:
    return sum(each.model == model for each in faults)
