"""How much memory models should give back because the machine, or the container, runs short of it. Pure.

Before the kernel acts: it stalls everybody, and then kills whoever it likes. Three signs, the largest answer counts:

- Little is left (MemAvailable, or what the tightest control group leaves, v1 or v2): below RESERVE of all memory.
- Tasks stall for memory (PSI): those of a group that the server is in, or of the machine where little is left of it
  too; another container at its own limit stalls the machine as well, and is helped by nothing that models give back.
- A group was over its `memory.high` since the last look: there the kernel throttles whoever allocates.

And a budget that was set is kept by those that serve, not by loads alone: workers grow, zygotes start.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mmsup.supervisor.config.units import size_text
from mmsup.supervisor.linux.memory_pressure import MemoryPressure

RESERVE: Final = 1 / 32
"""Of all memory."""
MIN_RESERVE_BYTES: Final = 64 << 20
MAX_RESERVE_BYTES: Final = 1 << 30
RECOVERY: Final = 1.5
"""So much of the reserve is left afterwards, lest the next request begins anew."""
SOME_STALLED: Final = 20.0
"""Per cent of time, as for FULL_STALLED: a process that starts reaches a few."""
FULL_STALLED: Final = 5.0
LITTLE_LEFT: Final = 0.1
"""Of all memory."""
STEP: Final = 1 / 50
"""Of all memory, given back at a time for stalls, which do not say how much is missing."""
STEP_S: Final = 10.0
"""Between two such steps: the average of the kernel is over ten seconds."""
HIGH_SHARE: Final = 0.05
"""Of the memory below `memory.high` that is left free."""


@dataclass(frozen=True, slots=True)
class PressureFacts:
    """One look."""

    at_s: float
    total_bytes: int
    available_bytes: int
    returning_bytes: int
    """What leaves already."""
    kernel: MemoryPressure
    over_budget_bytes: int = 0
    """What workers and zygotes hold beyond a budget that somebody has set."""


@dataclass(frozen=True, slots=True)
class Relief:
    missing_bytes: int
    why: str
    is_step: bool = False
    """For stalls."""
    reason: str = "pressure"
    """Or `budget`."""


def relief(facts: PressureFacts, high_events_before: int, last_step_s: float) -> Relief | None:
    """What should be given back now beside what leaves already; None if nothing. `last_step_s`: of the last relief for
    stalls."""
    found = [
        each
        for each in (
            _for_reserve(facts),
            _for_stalls(facts, last_step_s),
            _for_high(facts, high_events_before),
            _for_budget(facts),
        )
        if each is not None and each.missing_bytes > facts.returning_bytes
    ]
    if not found:
        return None
    most = max(found, key=lambda each: each.missing_bytes)
    return Relief(most.missing_bytes - facts.returning_bytes, most.why, most.is_step, most.reason)


def reserve_bytes(total_bytes: int) -> int:
    return min(max(round(total_bytes * RESERVE), MIN_RESERVE_BYTES), MAX_RESERVE_BYTES)


def _for_reserve(facts: PressureFacts) -> Relief | None:
    reserve = reserve_bytes(facts.total_bytes)
    if facts.available_bytes >= reserve:
        return None
    why = f"{size_text(facts.available_bytes)} of {size_text(facts.total_bytes)} are left"
    return Relief(round(reserve * RECOVERY) - facts.available_bytes, why)


def _for_budget(facts: PressureFacts) -> Relief | None:
    over = facts.over_budget_bytes
    return Relief(over, f"workers hold {size_text(over)} more than the budget", reason="budget") if over > 0 else None


def _for_stalls(facts: PressureFacts, last_step_s: float) -> Relief | None:
    own, machine = facts.kernel.own, facts.kernel.machine
    is_short = facts.available_bytes < facts.total_bytes * LITTLE_LEFT
    stalls = max((own, machine) if is_short else (own,), key=lambda each: (each.full, each.some))
    if (stalls.some < SOME_STALLED and stalls.full < FULL_STALLED) or facts.at_s < last_step_s + STEP_S:
        return None
    why = f"tasks waited for memory in {stalls.some:.0f}% of the last seconds, all of them in {stalls.full:.0f}%"
    return Relief(round(facts.total_bytes * STEP), why, is_step=True)


def _for_high(facts: PressureFacts, events_before: int) -> Relief | None:
    kernel = facts.kernel
    if kernel.high_events <= events_before:
        return None
    missing = kernel.over_high_bytes + round(facts.total_bytes * HIGH_SHARE)
    return Relief(missing, "its control group was over `memory.high`") if missing > 0 else None
