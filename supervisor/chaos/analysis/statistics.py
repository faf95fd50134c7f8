"""The figures of a run: what was injected and served, how fast deaths were found and mended. Pure.

Detection is from the kernel's word to the journal's; the answer of those in flight from the kernel's word to the last
outcome. Recovery is from the death to the first right answer of another life, less what that life itself needed to load
and the pause that the restart policy announced; whole, it is without these two taken away.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mmsup.supervisor.chaos.analysis.checker import Finding, recovery_s
from mmsup.supervisor.chaos.analysis.timeline import Blow, Request, Story
from mmsup.supervisor.chaos.plan.catalog import KEEPER, RESETTING, By, Role

WARM_S: Final = 1.0
"""The first requests pay for connections and first shared memory: no part of the baseline."""
SETTLED_S: Final = 3.0
"""After a gateway came back: what had waited for it is served."""


@dataclass(frozen=True, slots=True)
class Spread:
    """A distribution, seconds. All NaN if there was nothing."""

    count: int
    p50: float
    p99: float
    worst: float


@dataclass(frozen=True, slots=True)
class Class:
    """One class of fault."""

    name: str
    row: str
    injected: int
    answered: Spread
    recovery: Spread
    whole: Spread


@dataclass(frozen=True, slots=True)
class Figures:
    """Everything that a report says."""

    classes: list[Class]
    passed_over: int
    sent: int
    served: int
    sent_healthy: int
    failed_healthy: int
    failed_unexplained: int
    failed_explained: int
    broken_by_gateways: int
    broken_by_keepers: int
    wrong: int
    lost: int
    left: dict[str, int]
    unplanned: int
    detection: Spread
    in_flight: Spread
    recovery: Spread
    shaken: Spread
    """Recovery while brain or gateway was hurt as well."""
    whole: Spread
    keeper: Spread
    """From the death of a keeper to when every model served again."""
    poison_deaths: list[int]
    """Of each request that killed each time: the deaths until it was refused."""
    innocents: int
    """Requests that were beside it, and were served in the end."""
    lateness: Spread
    """How late the clients themselves were: what of any latency is theirs."""
    baseline: Spread
    during: Spread
    everything: Spread
    findings: list[Finding]

    def as_json(self) -> dict[str, Any]:  # one JSON object
        """All of it, NaN as null."""
        return {name: _plain(getattr(self, name)) for name in self.__dataclass_fields__}


def figures(story: Story, findings: list[Finding]) -> Figures:
    """The figures of a checked history."""
    by_rule = Counter(each.rule for each in findings)
    requests = list(story.requests.values())
    healthy = [each for each in requests if story.role(each.invoke.model) == Role.HEALTHY]
    resets = [each for each in requests if _kind(each) == "reset"]
    with_keeper = sum(_met_a_keeper(story, each) for each in resets)
    poisons = [each for each in story.blows if each.fault.insists]
    left: Counter[str] = Counter()
    for look in story.left:
        left.update(look.counts)
    return Figures(
        classes=[_class(name, story) for name in sorted({each.fault.name for each in story.blows})],
        passed_over=story.passed_over,
        sent=len(requests),
        served=sum(each.is_right for each in requests),
        sent_healthy=len(healthy),
        failed_healthy=by_rule["healthy"],
        failed_unexplained=by_rule["explained"] + by_rule["harm"] + by_rule["refused"],
        failed_explained=sum(_kind(each) == "error" for each in requests) - by_rule["healthy"] - by_rule["explained"],
        broken_by_gateways=len(resets) - with_keeper,
        broken_by_keepers=with_keeper,
        wrong=by_rule["bytes"] + by_rule["crossed"],
        lost=by_rule["outcome"],
        left={key: left[key] for key in ("segments", "descriptors", "zombies", "cgroups")},
        unplanned=by_rule["house"],
        detection=spread(_told(each for each in story.blows if not _met_the_house(story, each))),
        in_flight=spread(_answered(story.blows)),
        recovery=spread(_recoveries(each for each in story.blows if not _met_the_house(story, each))),
        shaken=spread(_recoveries(each for each in story.blows if _met_the_house(story, each))),
        whole=spread(_wholes(story.blows)),
        keeper=spread(each.over_s - each.from_s for each in story.blows if each.fault.name in KEEPER),
        poison_deaths=[_deaths(story, each) for each in poisons],
        innocents=sum(request.is_right for each in poisons for request in each.beside),
        lateness=spread(each.invoke.t - each.invoke.intended for each in healthy),
        baseline=spread(
            _latencies(each for each in healthy if story.began.from_s + WARM_S <= each.invoke.t < story.began.calm_s)
        ),
        during=spread(_latencies(each for each in healthy if _is_during(story, each) and not _is_shaken(story, each))),
        everything=spread(_latencies(each for each in healthy if _is_during(story, each))),
        findings=findings,
    )


def spread(values: Iterable[float]) -> Spread:
    """Their distribution; what is below zero counts as zero: two clocks of one machine, read in turn."""
    ordered = sorted(max(0.0, each) for each in values)
    if not ordered:
        return Spread(0, math.nan, math.nan, math.nan)
    return Spread(len(ordered), _quantile(ordered, 0.5), _quantile(ordered, 0.99), ordered[-1])


def _quantile(ordered: Sequence[float], part: float) -> float:
    return ordered[min(len(ordered) - 1, math.ceil(part * len(ordered)) - 1 if part < 1 else len(ordered) - 1)]


def _class(name: str, story: Story) -> Class:
    blows = [each for each in story.blows if each.fault.name == name]
    return Class(
        name,
        blows[0].fault.row,
        len(blows),
        spread(_answered(blows)),
        spread(_recoveries(blows)),
        spread(_wholes(blows)),
    )


def _deaths(story: Story, blow: Blow) -> int:
    return sum(each.model == blow.victim and blow.from_s <= each.t <= blow.over_s for each in story.deaths)


def _met_a_keeper(story: Story, request: Request) -> bool:
    return any(each.fault.name in KEEPER and each.is_felt(request.invoke.t, request.ended_s) for each in story.blows)


def _answered(blows: Iterable[Blow]) -> list[float]:
    return [
        each.harm.ended_s - each.death.t
        for each in blows
        if each.death and each.harm and each.harm.end and each.harm.end.kind == "error"
    ]


def _told(blows: Iterable[Blow]) -> list[float]:
    return [each.told_s - each.death.t for each in blows if each.told_s is not None and each.death is not None]


def _recoveries(blows: Iterable[Blow]) -> list[float]:
    return [recovery_s(each) for each in blows if each.died_s is not None and each.back_s is not None]


def _wholes(blows: Iterable[Blow]) -> list[float]:
    return [each.back_s - each.died_s for each in blows if each.died_s is not None and each.back_s is not None]


def _latencies(requests: Iterable[Request]) -> list[float]:
    return [each.end.t - each.invoke.intended for each in requests if each.end and each.is_right]


def _is_during(story: Story, request: Request) -> bool:
    return request.invoke.t >= story.began.calm_s


def _is_shaken(story: Story, request: Request) -> bool:
    """Whether a gateway was being hurt: its clients feel that by promise, and have a line of their own."""
    return any(
        each.fault.name in RESETTING
        and each.from_s <= request.ended_s
        and request.invoke.intended <= each.over_s + SETTLED_S
        for each in story.blows
    )


def _met_the_house(story: Story, blow: Blow) -> bool:
    """Whether brain or gateway was hurt between the blow and the comeback: respawns wait for the one, answers for the
    other."""
    back_s = blow.back_s or blow.from_s
    return any(
        each.fault.by == By.HOUSE and each.from_s <= back_s and blow.from_s <= each.over_s for each in story.blows
    )


def _kind(request: Request) -> str:
    return request.end.kind if request.end else ""


def _plain(value: Any) -> Any:  # any field of the figures, as JSON
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, 6)
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, Spread | Class | Finding):
        return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
    return value
