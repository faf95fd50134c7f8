"""Statistics of a run of faults that need only HTTP, so that they are the same for any server. Pure.

Times count from the request that triggers the fault, not from the death, which HTTP does not show. A model has
recovered when it answers a request that was sent after the triggering one had its outcome, or was SETTLE_S old.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from restarter import ENDED, SETTLE_S

from mmsup.supervisor.chaos.analysis.statistics import WARM_UP_S, Distribution, distribution
from mmsup.supervisor.chaos.analysis.timeline import InjectedFault, SentRequest, Timeline
from mmsup.supervisor.chaos.observe.history import ServerRestarted
from mmsup.supervisor.chaos.plan.catalog import ModelRole

IN_FLIGHT_S = 1.0
"""Requests this long before a restart fail with it, and do not count as failures of the server."""


@dataclass
class FaultEffects:
    injected: int = 0
    failed_healthy: int = 0
    """Until the next fault; without failures during a restart."""
    back_s: list[float] = field(default_factory=list[float])
    never: int = 0
    told_s: list[float] = field(default_factory=list[float])
    untold: int = 0


@dataclass
class ClientView:
    sent: int
    """To the healthy model."""
    failed: int
    """Of these; without failures during a restart."""
    failed_restarting: int
    wrong: int
    """Answers with other bytes, from any model."""
    unexplained: int
    """Failures of the faulty model while it should have served."""
    ended: int
    restarted: int
    before: Distribution
    under: Distribution
    faults: dict[str, FaultEffects]

    @property
    def back(self) -> Distribution:
        """How long the faulty model was unavailable, where it recovered by itself."""
        return distribution(each for fault in self.faults.values() for each in fault.back_s)

    @property
    def never(self) -> int:
        """How often it did not recover by itself."""
        return sum(each.never for each in self.faults.values())


def client_view(timeline: Timeline) -> ClientView:
    healthy = [each for each in timeline.requests.values() if timeline.role(each.invoke.model) == ModelRole.HEALTHY]
    faulty = [each for each in timeline.requests.values() if timeline.role(each.invoke.model) != ModelRole.HEALTHY]
    failed = [each for each in healthy if not each.is_right]
    excused = [each for each in failed if _is_excused(timeline, each)]
    unavailable = [(each.start_s, _unavailable_until_s(timeline, each)) for each in timeline.faults]
    kinds = [outcome.kind for each in timeline.requests.values() for outcome in each.outcomes]
    calm_s = timeline.run.calm_s
    return ClientView(
        sent=len(healthy),
        failed=len(failed) - len(excused),
        failed_restarting=len(excused),
        wrong=sum(each in ("wrong", "crossed", "stray") for each in kinds),
        unexplained=sum(
            not each.is_right
            and not each.invoke.strike
            and not _is_excused(timeline, each)
            and not any(from_s <= each.ended_s and each.invoke.t <= until_s for from_s, until_s in unavailable)
            for each in faulty
        ),
        ended=sum(each.why == ENDED for each in timeline.restarts),
        restarted=sum(each.why != ENDED for each in timeline.restarts),
        before=distribution(
            _latencies(each for each in healthy if timeline.run.from_s + WARM_UP_S <= each.invoke.t < calm_s)
        ),
        under=distribution(_latencies(each for each in healthy if each.invoke.t >= calm_s)),
        faults=_fault_effects(timeline, [each for each in failed if not _is_excused(timeline, each)]),
    )


def _fault_effects(timeline: Timeline, failed: list[SentRequest]) -> dict[str, FaultEffects]:
    found: dict[str, FaultEffects] = {}
    times = [each.start_s for each in timeline.faults]
    for place, fault in enumerate(timeline.faults):
        effects = found.setdefault(fault.fault_class.name, FaultEffects())
        effects.injected += 1
        next_s = times[place + 1] if place + 1 < len(times) else float("inf")
        since_s = fault.start_s if place else 0.0
        effects.failed_healthy += sum(since_s <= each.invoke.t < next_s for each in failed)
        if fault.fault_request is None:
            continue
        if fault.fault_request.end is None or fault.fault_request.end.kind == "timeout":
            effects.untold += 1
        else:
            effects.told_s.append(fault.fault_request.ended_s - fault.start_s)
        back_s = recovered_at_s(timeline, fault)
        if back_s is None:
            effects.never += 1
        else:
            effects.back_s.append(back_s - fault.start_s)
    return found


def recovered_at_s(timeline: Timeline, fault: InjectedFault) -> float | None:
    """When the victim answered again; None if that took a restart of the server, or it never did."""
    served_s = _served_s(timeline, fault)
    restart = _restart_after(timeline, fault)
    return None if served_s is None or (restart is not None and restart.t < served_s) else served_s


def _served_s(timeline: Timeline, fault: InjectedFault) -> float | None:
    assert fault.fault_request is not None, "nothing was done to a model"
    since_s = min(fault.fault_request.ended_s, fault.start_s + SETTLE_S)
    right = (each for each in timeline.of_model(fault.victim) if each.is_right and each.invoke.t >= since_s)
    return min((each.ended_s for each in right), default=None)


def _restart_after(timeline: Timeline, fault: InjectedFault) -> ServerRestarted | None:
    return next((each for each in timeline.restarts if each.t >= fault.start_s), None)


def _unavailable_until_s(timeline: Timeline, fault: InjectedFault) -> float:
    """Until when failures of the victim are explained by the fault."""
    if fault.fault_request is None:
        return fault.end_s
    served_s = _served_s(timeline, fault)
    return float("inf") if served_s is None else max(served_s, fault.fault_request.ended_s)


def _is_excused(timeline: Timeline, request: SentRequest) -> bool:
    """Whether it failed during a restart by the Restarter; not if the server had exited by itself."""
    return any(
        each.why != ENDED and each.t - IN_FLIGHT_S <= request.invoke.t <= each.until_s and request.ended_s >= each.t
        for each in timeline.restarts
    )


def _latencies(requests: Iterable[SentRequest]) -> list[float]:
    return [each.ended_s - each.invoke.intended for each in requests if each.is_right]
