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
from mmsup.supervisor.chaos.analysis.timeline import InjectedFault, SentRequest, Timeline
from mmsup.supervisor.chaos.plan.catalog import KEEPER_FAULTS, RESETTING_FAULTS, FaultMethod, ModelRole

WARM_UP_S: Final = 1.0
"""The first requests pay for connections and first shared memory: no part of the baseline."""
GATEWAY_SETTLE_S: Final = 3.0
"""After a gateway came back: what had waited for it is served."""


@dataclass(frozen=True, slots=True)
class Distribution:
    """A distribution, seconds. All NaN if there was nothing."""

    count: int
    p50: float
    p99: float
    worst: float


@dataclass(frozen=True, slots=True)
class FaultStatistics:
    """One class of fault."""

    name: str
    row: str
    injected: int
    answered: Distribution
    recovery: Distribution
    whole: Distribution


@dataclass(frozen=True, slots=True)
class RunStatistics:
    """Everything that a report says."""

    classes: list[FaultStatistics]
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
    detection: Distribution
    in_flight: Distribution
    recovery: Distribution
    shaken: Distribution
    """Recovery while brain or gateway was hurt as well."""
    whole: Distribution
    keeper: Distribution
    """From the death of a keeper to when every model served again."""
    poison_deaths: list[int]
    """Of each request that killed each time: the deaths until it was refused."""
    innocents: int
    """Requests that were beside it, and were served in the end."""
    lateness: Distribution
    """How late the clients themselves were: what of any latency is theirs."""
    baseline: Distribution
    during: Distribution
    everything: Distribution
    findings: list[Finding]

    def as_json(self) -> dict[str, Any]:  # one JSON object
        """All of it, NaN as null."""
        return {name: _json_value(getattr(self, name)) for name in self.__dataclass_fields__}


def run_statistics(story: Timeline, findings: list[Finding]) -> RunStatistics:
    """The figures of a checked history."""
    by_rule = Counter(each.rule for each in findings)
    requests = list(story.requests.values())
    healthy = [each for each in requests if story.role(each.invoke.model) == ModelRole.HEALTHY]
    resets = [each for each in requests if _end_kind(each) == "reset"]
    with_keeper = sum(_is_during_keeper_fault(story, each) for each in resets)
    poisons = [each for each in story.faults if each.fault.is_poison]
    left: Counter[str] = Counter()
    for look in story.leak_reports:
        left.update(look.counts)
    return RunStatistics(
        classes=[_fault_statistics(name, story) for name in sorted({each.fault.name for each in story.faults})],
        passed_over=story.skipped,
        sent=len(requests),
        served=sum(each.is_right for each in requests),
        sent_healthy=len(healthy),
        failed_healthy=by_rule["healthy"],
        failed_unexplained=by_rule["explained"] + by_rule["harm"] + by_rule["refused"],
        failed_explained=sum(_end_kind(each) == "error" for each in requests)
        - by_rule["healthy"]
        - by_rule["explained"],
        broken_by_gateways=len(resets) - with_keeper,
        broken_by_keepers=with_keeper,
        wrong=by_rule["bytes"] + by_rule["crossed"],
        lost=by_rule["outcome"],
        left={key: left[key] for key in ("segments", "descriptors", "zombies", "cgroups")},
        unplanned=by_rule["house"],
        detection=distribution(
            _detection_delays(each for each in story.faults if not _overlaps_server_fault(story, each))
        ),
        in_flight=distribution(_answer_delays(story.faults)),
        recovery=distribution(_recoveries(each for each in story.faults if not _overlaps_server_fault(story, each))),
        shaken=distribution(_recoveries(each for each in story.faults if _overlaps_server_fault(story, each))),
        whole=distribution(_total_recoveries(story.faults)),
        keeper=distribution(each.end_s - each.start_s for each in story.faults if each.fault.name in KEEPER_FAULTS),
        poison_deaths=[_death_count(story, each) for each in poisons],
        innocents=sum(request.is_right for each in poisons for request in each.bystanders),
        lateness=distribution(each.invoke.t - each.invoke.intended for each in healthy),
        baseline=distribution(
            _latencies(each for each in healthy if story.run.from_s + WARM_UP_S <= each.invoke.t < story.run.calm_s)
        ),
        during=distribution(
            _latencies(
                each
                for each in healthy
                if _is_after_baseline(story, each) and not _is_during_gateway_fault(story, each)
            )
        ),
        everything=distribution(_latencies(each for each in healthy if _is_after_baseline(story, each))),
        findings=findings,
    )


def distribution(values: Iterable[float]) -> Distribution:
    """Their distribution; what is below zero counts as zero: two clocks of one machine, read in turn."""
    ordered = sorted(max(0.0, each) for each in values)
    if not ordered:
        return Distribution(0, math.nan, math.nan, math.nan)
    return Distribution(len(ordered), _quantile(ordered, 0.5), _quantile(ordered, 0.99), ordered[-1])


def _quantile(ordered: Sequence[float], part: float) -> float:
    return ordered[min(len(ordered) - 1, math.ceil(part * len(ordered)) - 1 if part < 1 else len(ordered) - 1)]


def _fault_statistics(name: str, story: Timeline) -> FaultStatistics:
    blows = [each for each in story.faults if each.fault.name == name]
    return FaultStatistics(
        name,
        blows[0].fault.row,
        len(blows),
        distribution(_answer_delays(blows)),
        distribution(_recoveries(blows)),
        distribution(_total_recoveries(blows)),
    )


def _death_count(story: Timeline, blow: InjectedFault) -> int:
    return sum(each.model == blow.victim and blow.start_s <= each.t <= blow.end_s for each in story.deaths)


def _is_during_keeper_fault(story: Timeline, request: SentRequest) -> bool:
    return any(
        each.fault.name in KEEPER_FAULTS and each.may_affect(request.invoke.t, request.ended_s) for each in story.faults
    )


def _answer_delays(blows: Iterable[InjectedFault]) -> list[float]:
    return [
        each.fault_request.ended_s - each.death.t
        for each in blows
        if each.death and each.fault_request and each.fault_request.end and each.fault_request.end.kind == "error"
    ]


def _detection_delays(blows: Iterable[InjectedFault]) -> list[float]:
    return [each.reported_s - each.death.t for each in blows if each.reported_s is not None and each.death is not None]


def _recoveries(blows: Iterable[InjectedFault]) -> list[float]:
    return [recovery_s(each) for each in blows if each.died_s is not None and each.recovered_s is not None]


def _total_recoveries(blows: Iterable[InjectedFault]) -> list[float]:
    return [
        each.recovered_s - each.died_s for each in blows if each.died_s is not None and each.recovered_s is not None
    ]


def _latencies(requests: Iterable[SentRequest]) -> list[float]:
    return [each.end.t - each.invoke.intended for each in requests if each.end and each.is_right]


def _is_after_baseline(story: Timeline, request: SentRequest) -> bool:
    return request.invoke.t >= story.run.calm_s


def _is_during_gateway_fault(story: Timeline, request: SentRequest) -> bool:
    """Whether a gateway was being hurt: its clients feel that by promise, and have a line of their own."""
    return any(
        each.fault.name in RESETTING_FAULTS
        and each.start_s <= request.ended_s
        and request.invoke.intended <= each.end_s + GATEWAY_SETTLE_S
        for each in story.faults
    )


def _overlaps_server_fault(story: Timeline, blow: InjectedFault) -> bool:
    """Whether brain or gateway was hurt between the blow and the comeback: respawns wait for the one, answers for the
    other."""
    back_s = blow.recovered_s or blow.start_s
    return any(
        each.fault.method == FaultMethod.SERVER_PROCESS and each.start_s <= back_s and blow.start_s <= each.end_s
        for each in story.faults
    )


def _end_kind(request: SentRequest) -> str:
    return request.end.kind if request.end else ""


def _json_value(value: Any) -> Any:  # any field of the figures, as JSON
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, 6)
    if isinstance(value, list):
        return [_json_value(each) for each in value]
    if isinstance(value, Distribution | FaultStatistics | Finding):
        return {name: _json_value(getattr(value, name)) for name in value.__dataclass_fields__}
    return value
