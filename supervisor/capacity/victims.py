"""Which models go to sleep when memory is needed. Pure.

The value of keeping a model is the waiting that it spares, for each byte that it holds:

    value = use rate x (time of its load + TURNAROUND_S) / bytes

as in GreedyDual-Size-Frequency (Cherkasova, 1998), with the frequency as a decayed rate (models/use_rate.py) instead of
a count and a clock that runs with the evictions. Least value goes first, after these rules:

1. A model that was loaded is kept until it has served (at most UNSERVED_S), and then for as long as its load took: of
   two that do not fit together and are both asked all the time, each serves half of the time.
2. Lower classes of priority go first. A higher class than that of the load does not go for it, unless it had no request
   for CLASS_S: a class says who is served first, not who holds memory that nobody uses.
3. Where a run takes long already, waiting for its end would be no help: such models are last of their class.
4. What is asleep in host memory serves nobody: it is first, but for memory of a device, which it has left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from mmsup.supervisor.capacity.moves import SleepTier

TURNAROUND_S: Final = 0.1
"""What going and coming back costs beside the load: draining, the end of the process, its start."""
MIN_RESIDENCE_S: Final = 0.1
MAX_RESIDENCE_S: Final = 30.0
UNSERVED_S: Final = 5.0
"""Long for gateways to send what has waited for it; whoever waits no longer must not keep it for good."""
CLASS_S: Final = 60.0
LONG_RUN_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that may be put to sleep, or may be later."""

    name: str
    priority: int
    """Its class; 1 is the highest."""
    held_bytes: int
    """Of the memory that is needed."""
    idle_s: float
    """Since its last request."""
    use_rate: float
    return_s: float
    """How long its load takes."""
    kept_s: float = 0.0
    """How much longer it is kept in any case; infinite while it is loaded."""
    running_s: float = 0.0
    """How long its present run has taken; 0: none."""
    others: tuple[str, ...] = ()
    """Models that go with it: those that share its worker."""
    is_offloaded: bool = False
    """It is asleep already, in host memory: its process goes."""
    offload_bytes: int = 0
    """What it gives if it goes to host memory instead; 0: it may not."""
    host_growth_bytes: int = 0
    """What that takes of the host."""
    tier: SleepTier = SleepTier.UNLOADED
    """Where it goes."""

    @property
    def value(self) -> float:
        return self.use_rate * (self.return_s + TURNAROUND_S) / max(self.held_bytes, 1)


def kept_s(ready_for_s: float, return_s: float, *, has_served: bool) -> float:
    """How much longer a model is kept that became ready so long ago."""
    residence_s = min(max(return_s, MIN_RESIDENCE_S), MAX_RESIDENCE_S)
    return max((residence_s if has_served else max(residence_s, UNSERVED_S)) - ready_for_s, 0.0)


def as_one(candidates: Sequence[Candidate]) -> Candidate:
    """The models of one co-location group, which share a process and go together: worth as much as the most valuable
    one, and kept as long as any."""
    first, *others = sorted(candidates, key=lambda each: each.name)
    return Candidate(
        first.name,
        min(each.priority for each in candidates),
        sum(each.held_bytes for each in candidates),
        min(each.idle_s for each in candidates),
        max(each.use_rate for each in candidates),
        max(each.return_s for each in candidates),
        max(each.kept_s for each in candidates),
        max(each.running_s for each in candidates),
        tuple(each.name for each in others),
    )


def may_go(candidate: Candidate, priority: int) -> bool:
    """Whether it may go, now or later, for a load of a model of this class."""
    is_low_enough = candidate.is_offloaded or _effective_class(candidate, priority) >= priority
    return candidate.held_bytes > 0 and is_low_enough


def next_due_s(candidates: Sequence[Candidate], priority: int) -> float:
    """When the first one may go that may not go yet; infinite if that is not a question of time."""
    return min((each.kept_s for each in candidates if each.kept_s > 0 and may_go(each, priority)), default=math.inf)


def choose(candidates: Sequence[Candidate], missing_bytes: int, priority: int) -> list[Candidate]:
    """Who goes now for so many bytes, least valuable first; all that may go if they are not enough."""
    able = [each for each in candidates if each.kept_s <= 0 and may_go(each, priority)]
    found: list[Candidate] = []
    surplus = -missing_bytes
    for each in sorted(able, key=lambda candidate: _order(candidate, priority)):
        if surplus >= 0:
            break
        found.append(each)
        surplus += each.held_bytes
    for each in reversed(found):  # a larger one that came later may do alone
        if each.held_bytes <= surplus:
            found.remove(each)
            surplus -= each.held_bytes
    return found


def choose_with_tiers(
    candidates: Sequence[Candidate], missing_bytes: int, priority: int, host_room_bytes: int
) -> list[Candidate]:
    """The same for memory of a device: into host memory as long as that gives enough and the host has room, with
    `held_bytes` as what it gives. If it does not give enough, they are unloaded."""
    awake = [each for each in candidates if not each.is_offloaded]
    softly = [
        replace(each, held_bytes=each.offload_bytes, tier=SleepTier.HOST_MEMORY) if each.offload_bytes else each
        for each in awake
    ]
    chosen = choose(softly, missing_bytes, priority)
    moved_bytes = sum(max(each.host_growth_bytes, 0) for each in chosen if each.tier is SleepTier.HOST_MEMORY)
    is_enough = sum(each.held_bytes for each in chosen) >= missing_bytes and moved_bytes <= host_room_bytes
    return chosen if is_enough else choose(candidates, missing_bytes, priority)


def _effective_class(candidate: Candidate, priority: int) -> int:
    return max(candidate.priority, priority) if candidate.idle_s >= CLASS_S else candidate.priority


def _order(candidate: Candidate, priority: int) -> tuple[bool, int, bool, float, float, str]:
    runs_long, of_class = candidate.running_s > LONG_RUN_S, -_effective_class(candidate, priority)
    return (
        not candidate.is_offloaded,
        of_class,
        runs_long,
        candidate.value,
        -candidate.idle_s,
        candidate.name,
    )
