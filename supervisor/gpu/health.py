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

FAULTS: Final = 3
PERIOD_S: Final = 600.0
MODELS: Final = 2


@dataclass(frozen=True, slots=True)
class Fault:
    """One worker that left with a GPU fault. `at_s`: monotonic seconds."""

    at_s: float
    model: str


def recent(faults: Sequence[Fault], now_s: float) -> tuple[Fault, ...]:
    """Those that still count, oldest first: each model's last ones, so that a loop of one hides no other."""
    fresh = [each for each in faults if each.at_s > now_s - PERIOD_S]
    kept = [each for place, each in enumerate(fresh) if _later(fresh[place + 1 :], each.model) < FAULTS]
    return tuple(kept)


def why(faults: Sequence[Fault], driver_says: str, now_s: float) -> str:
    """Why nothing new shall go to a device; empty if it may. `driver_says`: what it counts against the device, if
    anything."""
    counted = recent(faults, now_s)
    models = sorted({each.model for each in counted})
    if len(counted) < FAULTS or (len(models) < MODELS and not driver_says):
        return ""
    whose = f"workers of {', '.join(models)}"
    return f"{len(counted)} GPU faults within {PERIOD_S / 60:g} min, of {whose}" + (driver_says and f"; {driver_says}")


def _later(faults: Sequence[Fault], model: str) -> int:
    return sum(each.model == model for each in faults)
