"""What of a repository fits into the budgets, and who would have to go for the others. Pure.

Models are taken as they load: pinned ones first, then by class of priority and name. Each is put to the same question
as a load of a running server (admission.py), with guesses taken at their word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from mmsup.supervisor.capacity.admission import Admit, Claim, MakeRoom, Pool, decide
from mmsup.supervisor.capacity.footprint import NO_NEED, Need


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """One version of a model with all its instances."""

    name: str
    version: str
    priority: int
    """1 is the highest."""
    host: Need
    """Of all its instances together."""
    device: str = ""
    """Which GPUs it may use: a pool's name, `cuda` for any, empty for none."""
    gpu: Need = NO_NEED
    load_s: float = 0.0
    """Of its last load; 0 is not measured."""
    is_pinned: bool = False
    is_evictable: bool = True
    """It may go for another."""

    @property
    def holder(self) -> str:
        return f"{self.name}/{self.version}"

    @property
    def is_measured(self) -> bool:
        return self.host.is_measured and (self.gpu.is_measured or not self.gpu.needed_bytes)


@dataclass(frozen=True, slots=True)
class Placement:
    """What becomes of one model. It `fits` beside those before it; else `evicts` says who would go when it is asked
    for, and `why_not` why nothing helps."""

    model: PlannedModel
    device: str = ""
    evicts: tuple[str, ...] = ()
    why_not: str = ""

    @property
    def fits(self) -> bool:
        return not self.evicts and not self.why_not


@dataclass(slots=True)
class _Residents:
    """Those that fit so far, and where."""

    host: Pool
    devices: dict[str, Pool]
    placed: list[Placement] = field(default_factory=list["Placement"])

    def pools(self, device: str) -> list[Pool]:
        return [self.host, *([self.devices[device]] if device else [])]

    def add(self, placement: Placement) -> None:
        model, device = placement.model, placement.device
        self.placed.append(placement)
        self.host = _with_claim(self.host, Claim(model.holder, model.host.settled_bytes))
        if device:
            self.devices[device] = _with_claim(self.devices[device], Claim(model.holder, model.gpu.settled_bytes))


def plan(models: Sequence[PlannedModel], host: Pool, devices: Sequence[Pool]) -> list[Placement]:
    """The placements, in the order of loading. A model for a GPU that is not among the devices is weighed on the host
    alone."""
    residents = _Residents(host, {each.name: each for each in devices})
    found: list[Placement] = []
    for model in sorted(models, key=lambda each: (not each.is_pinned, each.priority, each.name, each.version)):
        placement = _place(model, residents)
        found.append(placement)
        if placement.fits:
            residents.add(placement)
    return found


def pinned_misfits(placements: Sequence[Placement]) -> list[Placement]:
    """Pinned models for which there is no room."""
    return [each for each in placements if each.model.is_pinned and not each.fits]


def _place(model: PlannedModel, residents: _Residents) -> Placement:
    """On the first of its devices where it fits; else on that where fewest have to go."""
    tried = [_place_on(model, device, residents) for device in _devices_of(model, residents)]
    return min(tried, key=lambda each: (bool(each.why_not), len(each.evicts)))


def _devices_of(model: PlannedModel, residents: _Residents) -> list[str]:
    if not model.device:
        return [""]
    names = [each for each in residents.devices if model.device in (each, "cuda")]
    return sorted(names, key=lambda name: -_left(residents.devices[name])) or [""]


def _left(pool: Pool) -> int:
    return pool.budget_bytes - pool.claimed()


def _place_on(model: PlannedModel, device: str, residents: _Residents) -> Placement:
    needs = [_at_its_word(model.host), *([_at_its_word(model.gpu)] if device else [])]
    pools = residents.pools(device)
    candidates = _by_cost_of_return(residents)
    victims: list[Placement] = []
    while True:
        left = [_without(pool, [each.model.holder for each in victims]) for pool in pools]
        may_go = [each for each in candidates if each not in victims]
        decision = decide([(_with_evictable(pool, may_go), need) for pool, need in zip(left, needs, strict=True)])
        if isinstance(decision, Admit):
            return Placement(model, device, tuple(each.model.holder for each in victims))
        helpful = [each for each in may_go if _held(decision.shortage.pool, each, pools)]
        if not isinstance(decision, MakeRoom) or not helpful:
            return Placement(model, device, why_not=decision.shortage.text)
        victims.append(helpful[0])


def _by_cost_of_return(residents: _Residents) -> list[Placement]:
    """Who may go for another, the first one first: all but pinned ones; lower classes of priority before higher ones,
    and among equals who loads fastest for what it holds."""
    may_go = [each for each in residents.placed if each.model.is_evictable and not each.model.is_pinned]
    return sorted(may_go, key=lambda each: (-each.model.priority, _cost(each.model), each.model.name))


def _cost(model: PlannedModel) -> float:
    """Seconds of its load for each byte that its going gives."""
    return model.load_s / max(model.host.needed_bytes + model.gpu.needed_bytes, 1)


def _held(pool: str, placement: Placement, pools: Sequence[Pool]) -> int:
    found = next(each for each in pools if each.name == pool)
    return sum(each.claimed_bytes for each in found.claims if each.holder == placement.model.holder)


def _at_its_word(need: Need) -> Need:
    return replace(need, is_measured=True)


def _with_claim(pool: Pool, claim: Claim) -> Pool:
    return replace(pool, claims=(*pool.claims, claim))


def _without(pool: Pool, holders: Sequence[str]) -> Pool:
    return replace(pool, claims=tuple(each for each in pool.claims if each.holder not in holders))


def _with_evictable(pool: Pool, may_go: Sequence[Placement]) -> Pool:
    holders = {each.model.holder for each in may_go}
    return replace(pool, evictable_bytes=sum(each.claimed_bytes for each in pool.claims if each.holder in holders))
