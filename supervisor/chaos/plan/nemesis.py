"""When what happens to whom: a plan, from a seed. Pure.

Faults come at random distances. Each goes to a model of its role that has had its rest; the classes that came least
often come first, so that a short run has seen most of them. The same seed, faults and models give the same plan.
A model that has died a few times is loaded anew before it is hurt again, as an operator would who has looked at it:
else its growing pauses would be all that a long run measures.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from mmsup.supervisor.chaos.plan.catalog import FaultClass, ModelRole

DEATHS_BEFORE_RELOAD: Final = 3
"""After so many a model is loaded anew."""
RELOAD_S: Final = 2.0
NO_VICTIM: Final = ""
"""The victim of faults that are done to no model."""


@dataclass(frozen=True, slots=True)
class PlannedFault:
    """One fault of the plan."""

    number: int
    at_s: float
    """Seconds after the beginning of the run."""
    fault: FaultClass
    victim: str
    reload_after: bool = False
    """Load the victim anew when this is over."""


@dataclass(frozen=True, slots=True)
class FaultWindow:
    """When there are faults, and how close to each other, seconds."""

    start_s: float
    end_s: float
    interval_s: tuple[float, float] = (1.0, 3.0)


@dataclass(slots=True)
class _PlanState:
    """What the plan so far has done."""

    free_at_s: dict[str, float]
    faults: Counter[str] = field(default_factory=Counter)
    deaths: Counter[str] = field(default_factory=Counter)


def plan(
    seed: int, season: FaultWindow, models: Mapping[str, ModelRole], faults: Sequence[FaultClass]
) -> list[PlannedFault]:
    """All strikes, in order. `models`: name to role."""
    rng = random.Random(seed)
    tally = _PlanState(dict.fromkeys((*models, NO_VICTIM), 0.0))
    strikes: list[PlannedFault] = []
    at_s = season.start_s
    while at_s < season.end_s:
        choices = _choices(at_s, tally, models, faults)
        if choices:
            strikes.append(_plan_fault(len(strikes) + 1, at_s, rng.choice(choices), tally))
        at_s += rng.uniform(*season.interval_s)
    return strikes


def _choices(
    at_s: float, tally: _PlanState, models: Mapping[str, ModelRole], faults: Sequence[FaultClass]
) -> list[tuple[FaultClass, str]]:
    """What may come now, of the classes that came least often."""
    free = [
        (fault, victim)
        for fault in faults
        for victim in (
            [NO_VICTIM] if fault.role is None else [name for name, role in models.items() if role == fault.role]
        )
        if tally.free_at_s[victim] <= at_s
    ]
    least = min((tally.faults[fault.name] for fault, _ in free), default=0)
    return [(fault, victim) for fault, victim in free if tally.faults[fault.name] == least]


def _plan_fault(number: int, at_s: float, choice: tuple[FaultClass, str], tally: _PlanState) -> PlannedFault:
    fault, victim = choice
    tally.faults[fault.name] += 1
    if fault.causes:
        tally.deaths[victim] += fault.max_deaths
    forgive = tally.deaths[victim] >= DEATHS_BEFORE_RELOAD
    if forgive:
        tally.deaths[victim] = 0
    # Each death in a row makes the next pause longer.
    tally.free_at_s[victim] = at_s + fault.cooldown_s + tally.deaths[victim] * 0.5 + (RELOAD_S if forgive else 0.0)
    return PlannedFault(number, at_s, fault, victim, forgive)
