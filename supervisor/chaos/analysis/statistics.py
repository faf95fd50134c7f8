"""Statistics of a run: faults injected, requests served and failed, detection, recovery and latency. Pure.

Detection is from the pidfd to the event of the death; the answer of requests in flight from the pidfd to the last
outcome. Recovery is from the death to the first right answer of the next worker, less its load time and the announced
restart backoff; `whole` is without these two subtracted.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from mmsup.supervisor.chaos.analysis.checker import Finding
from mmsup.supervisor.chaos.analysis.timeline import InjectedFault, SentRequest, Timeline
from mmsup.supervisor.chaos.plan.catalog import KEEPER_FAULTS, FaultMethod, ModelRole, breaking_faults, is_poison

WARM_UP_S: Final = 1.0
"""The first requests open connections and shared memory: they do not belong to the baseline."""
GATEWAY_SETTLE_S: Final = 3.0
"""After a gateway restarts, the requests that waited for it are answered first."""


@dataclass(frozen=True, slots=True)
class Distribution:
    """Of times in seconds; NaN if there are none."""

    count: int
    p50: float
    p99: float
    worst: float


@dataclass(frozen=True, slots=True)
class FaultStatistics:
    name: str
    row: str
    injected: int
    answered: Distribution
    recovery: Distribution
    whole: Distribution


@dataclass(frozen=True, slots=True)
class RunStatistics:
    """Everything in a report; the names of the fields are its keys in JSON."""

    classes: list[FaultStatistics]
    passed_over: int
    sent: int
    served: int
    served_known: int
    """How many of them were served as known requests, as far as the counters outlived the run."""
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
    """Recovery while a fault hit controller or gateway as well."""
    whole: Distribution
    keeper: Distribution
    """From the death of a keeper until every model serves again."""
    poison_deaths: list[int]
    """Per poison request: deaths until it was refused."""
    innocents: int
    """Bystanders of poison requests that were served in the end."""
    lateness: Distribution
    """How late the clients sent their requests: their share of every latency."""
    baseline: Distribution
    during: Distribution
    everything: Distribution
    findings: list[Finding]


def run_statistics(timeline: Timeline, findings: list[Finding]) -> RunStatistics:
    by_rule = Counter(each.rule for each in findings)
    requests, faults = list(timeline.requests.values()), timeline.faults
    healthy = [each for each in requests if timeline.role(each.invoke.model) == ModelRole.HEALTHY]
    loaded = [each for each in healthy if each.invoke.t >= timeline.run.calm_s]
    resets = [each for each in requests if _end_kind(each) == "reset"]
    with_keeper = sum(timeline.is_affected(each.invoke.t, each.ended_s, KEEPER_FAULTS) for each in resets)
    poisons = [each for each in faults if is_poison(each.fault_class)]
    shaken = [each for each in faults if _overlaps_server_fault(timeline, each)]
    alone = [each for each in faults if not _overlaps_server_fault(timeline, each)]
    warm_s = timeline.run.from_s + WARM_UP_S
    leaks: Counter[str] = Counter()
    for report in timeline.leak_reports:
        leaks.update(report.counts)
    return RunStatistics(
        classes=[_fault_statistics(name, timeline) for name in sorted({each.fault_class.name for each in faults})],
        passed_over=timeline.skipped,
        sent=len(requests),
        served=sum(each.is_right for each in requests),
        served_known=round(timeline.served_counts[-1].known) if timeline.served_counts else 0,
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
        left={key: leaks[key] for key in ("segments", "descriptors", "zombies", "cgroups")},
        unplanned=by_rule["house"],
        detection=distribution(_detection_delays(alone)),
        in_flight=distribution(_answer_delays(faults)),
        recovery=distribution(_recoveries(alone)),
        shaken=distribution(_recoveries(shaken)),
        whole=distribution(_total_recoveries(faults)),
        keeper=distribution(each.end_s - each.start_s for each in faults if each.fault_class.name in KEEPER_FAULTS),
        poison_deaths=[_death_count(timeline, each) for each in poisons],
        innocents=sum(request.is_right for each in poisons for request in each.bystanders),
        lateness=distribution(each.invoke.t - each.invoke.intended for each in healthy),
        baseline=distribution(_latencies(each for each in healthy if warm_s <= each.invoke.t < timeline.run.calm_s)),
        during=distribution(_latencies(each for each in loaded if not _is_during_gateway_fault(timeline, each))),
        everything=distribution(_latencies(loaded)),
        findings=findings,
    )


def distribution(values: Iterable[float]) -> Distribution:
    """Quantiles by nearest rank. Negative values count as zero: they are two clock readings in the wrong order."""
    ordered = sorted(max(0.0, each) for each in values)
    if not ordered:
        return Distribution(0, math.nan, math.nan, math.nan)
    return Distribution(len(ordered), _quantile(ordered, 0.5), _quantile(ordered, 0.99), ordered[-1])


def _quantile(ordered: Sequence[float], part: float) -> float:
    return ordered[math.ceil(part * len(ordered)) - 1]


def _fault_statistics(name: str, timeline: Timeline) -> FaultStatistics:
    faults = [each for each in timeline.faults if each.fault_class.name == name]
    return FaultStatistics(
        name,
        faults[0].fault_class.row,
        len(faults),
        distribution(_answer_delays(faults)),
        distribution(_recoveries(faults)),
        distribution(_total_recoveries(faults)),
    )


def _death_count(timeline: Timeline, fault: InjectedFault) -> int:
    return sum(each.model == fault.victim and fault.start_s <= each.t <= fault.end_s for each in timeline.deaths)


def _answer_delays(faults: Iterable[InjectedFault]) -> list[float]:
    pairs = ((each.fault_request, each.death) for each in faults)
    return [
        request.ended_s - death.t for request, death in pairs if death and request and _end_kind(request) == "error"
    ]


def _detection_delays(faults: Iterable[InjectedFault]) -> list[float]:
    return [each.reported_s - each.death.t for each in faults if each.reported_s is not None and each.death is not None]


def _recoveries(faults: Iterable[InjectedFault]) -> list[float]:
    return [each.recovery.net_s for each in faults if each.recovery]


def _total_recoveries(faults: Iterable[InjectedFault]) -> list[float]:
    return [each.recovery.total_s for each in faults if each.recovery]


def _latencies(requests: Iterable[SentRequest]) -> list[float]:
    return [each.end.t - each.invoke.intended for each in requests if each.end and each.is_right]


def _is_during_gateway_fault(timeline: Timeline, request: SentRequest) -> bool:
    """Whether a gateway was down, or the front that took the call: clients are bound to notice, and have a row of
    their own."""
    return any(
        each.fault_class.name in breaking_faults(request.invoke.via)
        and each.start_s <= request.ended_s
        and request.invoke.intended <= each.end_s + GATEWAY_SETTLE_S
        for each in timeline.faults
    )


def _overlaps_server_fault(timeline: Timeline, fault: InjectedFault) -> bool:
    """Whether a fault hit controller or gateway before the recovery, which restarts and answers have to wait for."""
    recovered_s = fault.recovery.at_s if fault.recovery else fault.start_s
    return any(
        each.fault_class.method == FaultMethod.SERVER_PROCESS
        and each.start_s <= recovered_s
        and fault.start_s <= each.end_s
        for each in timeline.faults
    )


def _end_kind(request: SentRequest) -> str:
    return request.end.kind if request.end else ""
