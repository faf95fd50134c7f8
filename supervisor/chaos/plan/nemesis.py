"""Turns a seed into the plan of a run: which fault, when, into which model. Pure.

Faults come at random intervals. Each goes to a model of its role whose cooldown is over, which is that of the models
with it that are hit together; classes that were injected least often come first, so that a short run has had most of
them. The same seed, faults and models give the same plan.
A model that has died several times is reloaded, as an operator would after an inspection: the growing restart backoff
would otherwise be all that a long run measures.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from mmsup.supervisor.chaos.plan.catalog import FaultClass, ModelRole, hit_together

DEATHS_BEFORE_RELOAD: Final = 3
RELOAD_S: Final = 2.0
"""Added to the cooldown for a reload."""
DEATH_COOLDOWN_S: Final = 0.5
"""Added to the cooldown for each death in a row: the restart backoff grows with them."""
NO_VICTIM: Final = ""
"""The victim of faults that are not injected into a model."""


@dataclass(frozen=True, slots=True)
class PlannedFault:
    number: int
    at_s: float
    """Seconds since the start of the run."""
    fault_class: FaultClass
    victim: str
    reload_after: bool = False


@dataclass(frozen=True, slots=True)
class FaultWindow:
    """When faults are injected (seconds of the run), and the least and largest interval between two."""

    start_s: float
    end_s: float
    interval_s: tuple[float, float] = (1.0, 3.0)


@dataclass(slots=True)
class _PlanState:
    """What is planned so far, by victim or fault class."""

    free_at_s: dict[str, float]
    faults: Counter[str] = field(default_factory=Counter)
    deaths: Counter[str] = field(default_factory=Counter)


def plan(
    seed: int, window: FaultWindow, models: Mapping[str, ModelRole], faults: Sequence[FaultClass]
) -> list[PlannedFault]:
    rng = random.Random(seed)
    state = _PlanState(dict.fromkeys((*models, NO_VICTIM), 0.0))
    planned: list[PlannedFault] = []
    at_s = window.start_s
    while at_s < window.end_s:
        choices = _choices(at_s, state, models, faults)
        if choices:
            planned.append(_plan_fault(len(planned) + 1, at_s, rng.choice(choices), state))
            victim = planned[-1].victim
            state.free_at_s.update(dict.fromkeys(hit_together(victim, models), state.free_at_s[victim]))
        at_s += rng.uniform(*window.interval_s)
    return planned


def _choices(
    at_s: float, state: _PlanState, models: Mapping[str, ModelRole], faults: Sequence[FaultClass]
) -> list[tuple[FaultClass, str]]:
    """Fault and victim pairs that are possible now, of the classes that were planned least often."""
    free = [
        (fault, victim) for fault in faults for victim in _victims(fault, models) if state.free_at_s[victim] <= at_s
    ]
    least = min((state.faults[fault.name] for fault, _ in free), default=0)
    return [(fault, victim) for fault, victim in free if state.faults[fault.name] == least]


def _victims(fault: FaultClass, models: Mapping[str, ModelRole]) -> list[str]:
    return [NO_VICTIM] if fault.role is None else [name for name, role in models.items() if role == fault.role]


def _plan_fault(number: int, at_s: float, choice: tuple[FaultClass, str], state: _PlanState) -> PlannedFault:
    fault, victim = choice
    state.faults[fault.name] += 1
    if fault.causes:
        state.deaths[victim] += fault.max_deaths
    reload_after = state.deaths[victim] >= DEATHS_BEFORE_RELOAD
    if reload_after:
        state.deaths[victim] = 0
    cooldown_s = fault.cooldown_s + state.deaths[victim] * DEATH_COOLDOWN_S + (RELOAD_S if reload_after else 0.0)
    state.free_at_s[victim] = at_s + cooldown_s
    return PlannedFault(number, at_s, fault, victim, reload_after)
