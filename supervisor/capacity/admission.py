"""Whether one more load fits into memory. Pure.

`decide` is the one place that says so; whoever loads asks `models/memory_admission.py`, which asks it. What it is given
of each pool of memory (the host, a GPU): the budget, what is held and by whom, and what is really free. The rules:

1. What fits into budget and free memory is admitted.
2. Where memory that is being given back is enough, the load waits until those who hold it have exited.
3. Where models can be evicted for it, room is made: `MakeRoom` says how many bytes of which pool. A guess that is more
   than all of that waits for it, and is admitted then.
4. Otherwise it is refused, but only if it is known: its need was measured, or nothing of a budget that somebody has
   set is left. A guess and a default budget warn, as long as there is memory.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from mmsup.supervisor.capacity.footprint import Need
from mmsup.supervisor.config.units import size_text
from mmsup.supervisor.instances.instance import Instance

HOLDERS_SHOWN: Final = 3


class ClaimState(enum.Enum):
    USED = enum.auto()
    BOOKED = enum.auto()
    """It loads: what it is expected to need, or what it holds already if that is more."""
    RETURNING = enum.auto()
    """It is on its way out."""


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """A GPU at this moment."""

    label: str
    """`cuda:0 (NVIDIA H200)`."""
    names: tuple[str, ...]
    """By which a budget may name it."""
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Claim:
    """What one process takes of a pool."""

    holder: str
    """`bert/1`, or what else holds it, in words."""
    claimed_bytes: int
    state: ClaimState = ClaimState.USED


@dataclass(frozen=True, slots=True)
class Pool:
    """One kind of memory at one moment. `free_bytes`: what is really free beside all that is booked; None: unknown.
    `evictable_bytes`: what models hold that may be evicted for the load in question."""

    name: str
    option: str
    """The option that sets its budget."""
    budget_bytes: int
    is_configured: bool
    claims: tuple[Claim, ...] = ()
    free_bytes: int | None = None
    evictable_bytes: int = 0
    device: str = ""
    """The GPU whose memory it is, as CUDA_VISIBLE_DEVICES of a worker holds it; empty: the host's."""

    def claimed(self, *states: ClaimState) -> int:
        return sum(each.claimed_bytes for each in self.claims if each.state in (states or ClaimState))

    @property
    def returning_bytes(self) -> int:
        return self.claimed(ClaimState.RETURNING)

    def missing_bytes(self, need: Need) -> int:
        """What its budget lacks for a load, once all that leave have left."""
        return max(self.claimed() - self.returning_bytes + need.needed_bytes - self.budget_bytes, 0)


@dataclass(frozen=True, slots=True)
class Shortage:
    """Why a load does not fit into a pool, in figures."""

    pool: str
    needed_bytes: int
    in_use_bytes: int
    """Booked and returning memory included."""
    budget_bytes: int
    missing_bytes: int
    free_bytes: int | None
    is_guess: bool
    is_gone: bool
    """There is not enough memory left, whatever the budget says."""
    holders: tuple[tuple[str, int], ...]
    """Who holds most, and how much."""
    option: str
    device: str = ""
    """As the pool has it."""

    @property
    def is_beyond_budget(self) -> bool:
        """Whether it is known to be more than the whole budget: whoever leaves, it does not fit."""
        return not self.is_gone and not self.is_guess and self.needed_bytes > self.budget_bytes

    @property
    def text(self) -> str:
        """For anybody."""
        needs = f"it {'is guessed to need' if self.is_guess else 'needs'} {size_text(self.needed_bytes)} of {self.pool}"
        if self.is_gone:
            return f"{needs}, and {size_text(self.free_bytes or 0)} are free"
        if self.is_beyond_budget:
            return f"{needs}, more than the whole budget of {size_text(self.budget_bytes)}"
        return f"{needs}, and {size_text(self.in_use_bytes)} of the budget of {size_text(self.budget_bytes)} are in use"

    @property
    def advice(self) -> str:
        """For the operator: by whom, and what to do."""
        if self.is_beyond_budget:
            return f"raise {self.option}"
        if not self.is_gone and self.needed_bytes > self.budget_bytes:
            return f"raise {self.option}: alone it is more than the whole budget"
        most = ", ".join(f"{name} {size_text(held)}" for name, held in self.holders)
        by = f"most by {most}; " if most else ""
        raise_it = "use a machine with more memory" if self.is_gone else f"raise {self.option}"
        return f"{by}unload a model that is not needed, or {raise_it}"

    def fields(self) -> dict[str, object]:
        """For an event."""
        return {
            "memory": self.pool,
            "needed_bytes": self.needed_bytes,
            "in_use_bytes": self.in_use_bytes,
            "budget_bytes": self.budget_bytes,
            "missing_bytes": self.missing_bytes,
            "free_bytes": self.free_bytes,
            "guessed": self.is_guess,
            "held_by": dict(self.holders),
        }


@dataclass(frozen=True, slots=True)
class Admit:
    warning: Shortage | None = None
    """It may not fit, but that is a guess, or a default budget."""


@dataclass(frozen=True, slots=True)
class WaitForMemory:
    """For memory that is being given back."""

    shortage: Shortage


@dataclass(frozen=True, slots=True)
class MakeRoom:
    """Evict so many bytes (`missing_bytes`) of this pool, then ask again."""

    shortage: Shortage


@dataclass(frozen=True, slots=True)
class Refuse:
    shortage: Shortage


Decision = Admit | WaitForMemory | MakeRoom | Refuse
_SEVEREST_FIRST: Final = (Refuse, MakeRoom, WaitForMemory, Admit)


@dataclass(frozen=True, slots=True)
class RoomRequest:
    """A load that needs room."""

    model: str
    priority: int
    """Its class; 1 is the highest."""
    device: str = ""
    """The GPU whose memory is needed; empty: the host's."""
    memory: str = ""
    """The same in words."""


class Evictor(Protocol):
    """Gives memory back for a load."""

    counts: Mapping[str, int]
    """Models that have gone, by why memory was needed."""

    def is_evictable(self, instance: Instance) -> bool:
        """Whether its model may be put to sleep for others, once it is loaded."""

    def evictable_bytes(self, request: RoomRequest) -> int:
        """What those models hold that may go for it, now or later."""

    def keep_reserve(self, request: RoomRequest, pool: Pool, left_bytes: int) -> int:
        """After a load was admitted: begin to evict so much of the host's memory that the next ones need not wait.
        `left_bytes`: what is left of the budget once all that is booked is taken and all that leaves has gone. Returns
        what those hold who go now."""

    def make_room(self, request: RoomRequest, missing_bytes: int) -> int:
        """Begin to evict so much. Returns what those hold who go now; the load is to ask again when they are gone, and
        is asked to when others may go."""


def decide(demands: Sequence[tuple[Pool, Need]]) -> Decision:
    """Whether a load may begin now that needs so much of each of these pools: the severest of the decisions for each.
    Of two that are equally severe the one with the larger shortage is given; a warning wins over none."""
    found = [_decide_one(pool, need) for pool, need in demands if need.needed_bytes]
    for kind in _SEVEREST_FIRST:
        same = [each for each in found if isinstance(each, kind)]
        if same:
            return max(same, key=_missing_bytes)
    return Admit()


def _missing_bytes(decision: Decision) -> int:
    shortage = decision.warning if isinstance(decision, Admit) else decision.shortage
    return shortage.missing_bytes if shortage is not None else 0


def _decide_one(pool: Pool, need: Need) -> Decision:
    in_use = pool.claimed()
    over_budget = in_use + need.needed_bytes - pool.budget_bytes
    over_free = need.least_bytes - pool.free_bytes if pool.free_bytes is not None and need.is_measured else 0
    if over_budget <= 0 and over_free <= 0:
        return Admit()
    is_gone = over_free > 0
    binding = max(over_free, over_budget if pool.is_configured else 0)
    shortage = _shortage(pool, need, binding if binding > 0 else over_budget, is_gone=is_gone)
    room = _room(pool, binding, is_measured=need.is_measured) if binding > 0 else None
    if room is not None:
        return room(shortage)
    is_known = need.is_measured or in_use >= pool.budget_bytes
    if is_gone or (pool.is_configured and is_known):
        return Refuse(shortage)
    return Admit(shortage)


def _room(pool: Pool, missing_bytes: int, *, is_measured: bool) -> type[WaitForMemory | MakeRoom] | None:
    """How the missing bytes can come; for a guess, which is not refused in the end, as many of them as there are."""
    coming = pool.returning_bytes
    if missing_bytes <= coming or (coming and not is_measured and not pool.evictable_bytes):
        return WaitForMemory
    if pool.evictable_bytes and (missing_bytes <= coming + pool.evictable_bytes or not is_measured):
        return MakeRoom
    return None


def _shortage(pool: Pool, need: Need, missing_bytes: int, *, is_gone: bool) -> Shortage:
    held: dict[str, int] = {}
    for each in pool.claims:
        held[each.holder] = held.get(each.holder, 0) + each.claimed_bytes
    holders = sorted(held.items(), key=lambda each: (-each[1], each[0]))[:HOLDERS_SHOWN]
    return Shortage(
        pool.name,
        need.needed_bytes,
        pool.claimed(),
        pool.budget_bytes,
        missing_bytes,
        pool.free_bytes,
        not need.is_measured,
        is_gone,
        tuple(holders),
        pool.option,
        pool.device,
    )
