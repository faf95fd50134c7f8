"""What of a repository fits into the budgets, and who would have to go for the others. Pure.

Models are taken as they load: pinned ones first, then those that are loaded already, by class of priority and name.
Each is put to the same questions as a load of a running server: whether it fits (admission.py), with guesses taken at
their word, and who goes for it (victims.py). Without a server all are used alike, and none was within the last minute.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from mmsup.supervisor.capacity import victims
from mmsup.supervisor.capacity.admission import Admit, Claim, MakeRoom, Pool, decide
from mmsup.supervisor.capacity.footprint import NO_NEED, Need
from mmsup.supervisor.capacity.victims import Candidate


@dataclass(frozen=True, slots=True)
class ModelUse:
    """How a model is used: as a running server sees it, else as any other."""

    is_loaded: bool = False
    use_rate: float = 1.0
    """In how many of the last seconds it had a request."""
    idle_s: float = math.inf
    """Since its last request."""


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
    use: ModelUse = ModelUse()

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
    for model in sorted(models, key=_order):
        placement = _place(model, residents)
        found.append(placement)
        if placement.fits:
            residents.add(placement)
    return found


def _order(model: PlannedModel) -> tuple[bool, bool, int, str, str]:
    return not model.is_pinned, not model.use.is_loaded, model.priority, model.name, model.version


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
    gone: list[Placement] = []
    while True:
        left = [_without(pool, [each.model.holder for each in gone]) for pool in pools]
        candidates = {pool.name: _candidates(pool, residents, gone) for pool in left}
        able = [
            replace(
                pool,
                evictable_bytes=sum(
                    each.held_bytes for each in candidates[pool.name] if victims.may_go(each, model.priority)
                ),
            )
            for pool in left
        ]
        decision = decide(list(zip(able, needs, strict=True)))
        if isinstance(decision, Admit):
            return Placement(model, device, tuple(each.model.holder for each in gone))
        shortage = decision.shortage
        chosen = victims.choose(candidates[shortage.pool], shortage.missing_bytes, model.priority)
        if not isinstance(decision, MakeRoom) or not chosen:
            return Placement(model, device, why_not=shortage.text)
        placed = {each.model.holder: each for each in residents.placed}
        gone += [placed[each.name] for each in chosen]


def _candidates(pool: Pool, residents: _Residents, gone: Sequence[Placement]) -> list[Candidate]:
    """Who may go, with what each holds of a pool."""
    return [
        Candidate(
            each.model.holder,
            each.model.priority,
            _held(pool, each),
            each.model.use.idle_s,
            each.model.use.use_rate,
            each.model.load_s,
        )
        for each in residents.placed
        if each not in gone and each.model.is_evictable and not each.model.is_pinned
    ]


def _held(pool: Pool, placement: Placement) -> int:
    return sum(each.claimed_bytes for each in pool.claims if each.holder == placement.model.holder)


def _at_its_word(need: Need) -> Need:
    return replace(need, is_measured=True)


def _with_claim(pool: Pool, claim: Claim) -> Pool:
    return replace(pool, claims=(*pool.claims, claim))


def _without(pool: Pool, holders: Sequence[str]) -> Pool:
    return replace(pool, claims=tuple(each for each in pool.claims if each.holder not in holders))
