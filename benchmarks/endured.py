"""What clients of a server saw while it went through a plan of faults, for any server alike. Pure.

Times are from the fault's request, not from a death: that is all that HTTP shows. A model is back when it answers a
request that was sent after the harm had its outcome, or had been at work for a while.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from caretaker import ENDED, SETTLE_S

from mmsup.supervisor.chaos.analysis.statistics import WARM_UP_S, Distribution, distribution
from mmsup.supervisor.chaos.analysis.timeline import InjectedFault, SentRequest, Timeline
from mmsup.supervisor.chaos.observe.history import ServerRestarted
from mmsup.supervisor.chaos.plan.catalog import ModelRole

IN_FLIGHT_S = 1.0
"""What is in flight when a server is started again ends with it, and is not its failure."""


@dataclass
class FaultEffects:
    """One class of fault."""

    injected: int = 0
    failed_healthy: int = 0
    """Until the next fault; without those while the server was started again."""
    back_s: list[float] = field(default_factory=list[float])
    never: int = 0
    told_s: list[float] = field(default_factory=list[float])
    untold: int = 0


@dataclass
class ClientView:
    """One server."""

    sent: int
    """To the healthy model."""
    failed: int
    """Of these; without those while the server was started again."""
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
        """How long the faulty model was away, where it came back by itself."""
        return distribution(each for fault in self.faults.values() for each in fault.back_s)

    @property
    def never(self) -> int:
        """How often it did not."""
        return sum(each.never for each in self.faults.values())


def client_view(story: Timeline) -> ClientView:
    """All of it."""
    healthy = [each for each in story.requests.values() if story.role(each.invoke.model) == ModelRole.HEALTHY]
    faulty = [each for each in story.requests.values() if story.role(each.invoke.model) != ModelRole.HEALTHY]
    failed = [each for each in healthy if not each.is_right]
    excused = [each for each in failed if _is_excused(story, each)]
    away = [(each.start_s, _unavailable_until_s(story, each)) for each in story.faults]
    kinds = [outcome.kind for each in story.requests.values() for outcome in each.outcomes]
    calm_s = story.run.calm_s
    return ClientView(
        sent=len(healthy),
        failed=len(failed) - len(excused),
        failed_restarting=len(excused),
        wrong=sum(each in ("wrong", "crossed", "stray") for each in kinds),
        unexplained=sum(
            not each.is_right
            and not each.invoke.strike
            and not _is_excused(story, each)
            and not any(from_s <= each.ended_s and each.invoke.t <= until_s for from_s, until_s in away)
            for each in faulty
        ),
        ended=sum(each.why == ENDED for each in story.restarts),
        restarted=sum(each.why != ENDED for each in story.restarts),
        before=distribution(
            _latencies(each for each in healthy if story.run.from_s + WARM_UP_S <= each.invoke.t < calm_s)
        ),
        under=distribution(_latencies(each for each in healthy if each.invoke.t >= calm_s)),
        faults=_fault_effects(story, [each for each in failed if not _is_excused(story, each)]),
    )


def _fault_effects(story: Timeline, failed: list[SentRequest]) -> dict[str, FaultEffects]:
    found: dict[str, FaultEffects] = {}
    times = [each.start_s for each in story.faults]
    for place, blow in enumerate(story.faults):
        fault = found.setdefault(blow.fault.name, FaultEffects())
        fault.injected += 1
        next_s = times[place + 1] if place + 1 < len(times) else float("inf")
        since_s = blow.start_s if place else 0.0
        fault.failed_healthy += sum(since_s <= each.invoke.t < next_s for each in failed)
        if blow.fault_request is None:
            continue
        if blow.fault_request.end is None or blow.fault_request.end.kind == "timeout":
            fault.untold += 1
        else:
            fault.told_s.append(blow.fault_request.ended_s - blow.start_s)
        back_s = recovered_at_s(story, blow)
        if back_s is None:
            fault.never += 1
        else:
            fault.back_s.append(back_s - blow.start_s)
    return found


def recovered_at_s(story: Timeline, blow: InjectedFault) -> float | None:
    """When its victim answered again; None if somebody had to start the server for that, or it never did."""
    served_s = _served_s(story, blow)
    restart = _restart_after(story, blow)
    return None if served_s is None or (restart is not None and restart.t < served_s) else served_s


def _served_s(story: Timeline, blow: InjectedFault) -> float | None:
    assert blow.fault_request is not None, "nothing was done to a model"
    since_s = min(blow.fault_request.ended_s, blow.start_s + SETTLE_S)
    right = (each for each in story.of_model(blow.victim) if each.is_right and each.invoke.t >= since_s)
    return min((each.ended_s for each in right), default=None)


def _restart_after(story: Timeline, blow: InjectedFault) -> ServerRestarted | None:
    return next((each for each in story.restarts if each.t >= blow.start_s), None)


def _unavailable_until_s(story: Timeline, blow: InjectedFault) -> float:
    """Until when its victim may fail for it."""
    if blow.fault_request is None:
        return blow.end_s
    served_s = _served_s(story, blow)
    return float("inf") if served_s is None else max(served_s, blow.fault_request.ended_s)


def _is_excused(story: Timeline, request: SentRequest) -> bool:
    """Whether it met a server that its caretaker was starting again; where it had ended by itself that is no excuse."""
    return any(
        each.why != ENDED and each.t - IN_FLIGHT_S <= request.invoke.t <= each.until_s and request.ended_s >= each.t
        for each in story.restarts
    )


def _latencies(requests: Iterable[SentRequest]) -> list[float]:
    return [each.ended_s - each.invoke.intended for each in requests if each.is_right]
