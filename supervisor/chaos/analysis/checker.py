"""Checks a history for violated invariants: each rule yields a sentence per violation. Pure.

    outcome    every request has exactly one outcome (I9)         bytes     replies have the right bytes (I9)
    crossed    no reply has another request's bytes (I9)          healthy   no failure on a healthy model
    explained  failures on a faulty model have a fault            harm      a fault's request gets the fault's own code
    refused    no connection is refused                           death     one death per fault, one event each (I10)
    back       the victim serves again in bounded time            stale     no answer by a replaced or unloaded revision
    house      no unplanned restart of controller or gateway      counted   metrics agree with the clients (I10)
    poison     a request that kills repeatedly is refused         left      nothing leaked (I1 to I8)

Bounds here are far above what is normal, so that only a defect exceeds them; statistics.py measures durations.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from mmsup.supervisor.chaos.analysis.served_counts import metrics_agree
from mmsup.supervisor.chaos.analysis.timeline import RACE_S, InjectedFault, SentRequest, Timeline, timeline_of
from mmsup.supervisor.chaos.observe.history import Record, WorkerDeath
from mmsup.supervisor.chaos.plan.catalog import (
    FAILURE_CODES,
    FRONT_FAULTS,
    KEEPER_FAULTS,
    LATE_CODE,
    NO_ROOM_CODES,
    QUARANTINED,
    RESETTING_FAULTS,
    RIGHT,
    SEQUENCE_LOST,
    SHARED_CODES,
    UNLOADED_CODES,
    FaultMethod,
    ModelRole,
    breaking_faults,
    is_poison,
    partner,
)

ANSWER_LIMIT_S: Final = 5.0
"""From a death to the answers of the requests in flight; the promise is 0.1 s."""
RECOVERY_LIMIT_S: Final = 10.0
"""From a death to the next right answer, without load time and backoff; the promise is 1 s."""
SEQUENCE_MEMORY_S: Final = 60.0
"""From a death to the last request that wants to go on with a sequence which that has ended."""
RESET_GRACE_S: Final = 1.0
"""How long after a gateway's restart its broken connections may still be noticed."""


@dataclass(frozen=True, slots=True)
class Finding:
    rule: str
    text: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.text}"


def check(records: Iterable[Record]) -> list[Finding]:
    """All violations, in the order of RULES."""
    timeline = timeline_of(records)
    return [Finding(name, text) for name, rule in RULES.items() for text in rule(timeline)]


def one_outcome(timeline: Timeline) -> Iterator[str]:
    for request in timeline.requests.values():
        kinds = [each.kind for each in request.outcomes]
        if not kinds:
            yield f"{_described(request)} has no outcome"
        elif kinds[0] == "timeout":
            yield f"{_described(request)} got no reply"
        elif len(kinds) > 1:
            yield f"{_described(request)} has {len(kinds)} outcomes: {', '.join(kinds)}"
    for outcome in timeline.unmatched:
        yield f"an outcome of no request: {outcome.kind} for {outcome.id}"


def right_bytes(timeline: Timeline) -> Iterator[str]:
    for request in timeline.requests.values():
        if any(each.kind == "wrong" for each in request.outcomes):
            yield f"{_described(request)} was answered with other bytes than it sent"


def no_crossed_replies(timeline: Timeline) -> Iterator[str]:
    for request in timeline.requests.values():
        for each in request.outcomes:
            if each.kind == "crossed":
                owner = timeline.requests.get(each.whose)
                yield f"{_described(request)} got the bytes of {_described(owner) if owner else 'an unknown request'}"


def no_healthy_failures(timeline: Timeline) -> Iterator[str]:
    for request in _failed(timeline):
        if timeline.role(request.invoke.model) == ModelRole.HEALTHY and not _is_reset_by_fault(timeline, request):
            yield f"{_described(request)} failed: {_end_described(request)}"


def failures_explained(timeline: Timeline) -> Iterator[str]:
    """Failures on faulty models at a time when no fault explains them."""
    for request in _failed(timeline):
        model = request.invoke.model
        if timeline.role(model) == ModelRole.HEALTHY or request.invoke.strike or _is_reset_by_fault(timeline, request):
            continue
        if not any(_explains(timeline, each, request) for each in timeline.hits_on(model)):
            at = f"at {request.ended_s:.3f} s"
            yield f"{_described(request)} failed {at} without a fault: {_end_described(request)}"


def fault_requests_answered(timeline: Timeline) -> Iterator[str]:
    """Requests that trigger a fault and get another code than the fault's, or get it late."""
    for fault in timeline.faults:
        request = fault.fault_request
        if request is None or request.end is None:
            continue
        if not timeline.run.own_codes or _is_reset_by_fault(timeline, request):
            continue
        code = request.end.code or request.end.kind
        allowed = fault.fault_class.allowed_outcomes
        if timeline.is_affected(request.invoke.t, request.ended_s, _CONTROLLER_FAULTS):
            allowed |= _codes_near(timeline, fault)
        name = _fault_described(fault)
        if code not in allowed:
            yield f"{name}: {_end_described(request)}; expected {' or '.join(sorted(allowed))}"
        if code != RIGHT and request.invoke.model != fault.victim and f"'{fault.victim}'" not in request.end.text:
            yield f"{name}: {_end_described(request)}; it does not name {fault.victim}"
        delay_s = request.end.t - fault.death.t if fault.death and not request.is_right else 0.0
        if delay_s > ANSWER_LIMIT_S:
            yield f"{name} was answered {delay_s:.1f} s after the death"


def no_connection_refused(timeline: Timeline) -> Iterator[str]:
    for request in timeline.requests.values():
        if any(each.kind == "refused" for each in request.outcomes):
            yield f"the connection of {_described(request)} was refused"


def deaths_match_faults(timeline: Timeline) -> Iterator[str]:
    """Deaths without a fault, faults without a death, deaths that the events report otherwise."""
    if not timeline.deaths:
        return  # they could not be observed
    reports = timeline.death_reports()
    for death in timeline.deaths:
        fault, found = _fault_behind(timeline, death), reports[death.model, death.pid]
        if fault is None and not _was_replaced(timeline, death):
            yield f"a worker of {death.model} died at {death.t:.3f} s without a fault"
        elif fault is not None and fault.fault_class.name in KEEPER_FAULTS:
            continue  # the controller, which writes the events, died as well
        elif timeline.events and found != 1 and not _is_after_fault(timeline, death.t, _CONTROLLER_FAULTS):
            yield f"the death of {death.model} at {death.t:.3f} s stands {found} times in the events"
    for fault in timeline.faults:
        is_deadly = fault.fault_class.causes and fault.fault_class.must_kill
        if is_deadly and fault.death is None and not _had_no_effect(timeline, fault):
            yield f"{_fault_described(fault)} killed no worker"
        if fault.fault_class.name == "evict" and not _has_evicted(timeline, fault):
            yield f"{_fault_described(fault)} had no model put to sleep"
    for fault in (*timeline.faults, *timeline.shared):
        yield from _wrong_cause(timeline, fault)


def victims_recover(timeline: Timeline) -> Iterator[str]:
    """Victims that do not serve again, or late, with the models that are hit together with them."""
    for fault in (*timeline.faults, *timeline.shared):
        if fault.died_s is None:
            continue
        if fault.recovery is None:
            yield f"{fault.victim} did not serve again after fault {fault.number} ({fault.fault_class.name})"
        elif fault.recovery.net_s > RECOVERY_LIMIT_S and not _is_after_fault(
            timeline, fault.recovery.at_s, _CONTROLLER_FAULTS | RESETTING_FAULTS
        ):
            late = f"{fault.recovery.net_s:.1f} s late"
            yield f"{fault.victim} served again {late} after fault {fault.number} ({fault.fault_class.name})"


def no_stale_revision(timeline: Timeline) -> Iterator[str]:
    """Answers by a revision that had been replaced or unloaded when the request was sent."""
    for model in {each.model for each in timeline.revisions}:
        if timeline.role(model) == ModelRole.SEQUENCED:
            continue  # its sequences end in the worker in which they began
        revisions = sorted((each for each in timeline.revisions if each.model == model), key=lambda each: each.t)
        times = [each.t for each in revisions]
        for request in timeline.of_model(model):
            at = bisect.bisect_left(times, request.invoke.t) - 1
            if at < 0 or request.end is None or not request.is_right:
                continue
            replaced_s = times[at + 1] if at + 1 < len(times) else math.inf
            expected, found = revisions[at].revision, request.end.revision
            if expected == 0 and request.end.t < replaced_s:
                yield f"{_described(request)} was served after {model} had been unloaded"
            elif found < expected:
                text = f"was served by revision {found} of {model} after revision {expected} had replaced it"
                yield f"{_described(request)} {text}"


def no_unplanned_restarts(timeline: Timeline) -> Iterator[str]:
    """More restarts of controller, gateways or gRPC front than faults that cause them."""
    for event, faults in _RESTARTS.items():
        seen = sum(each.event.get("event") == event for each in timeline.events)
        injected = sum(each.fault_class.name in faults for each in timeline.faults)
        if seen > injected:
            yield f"{seen} times {event}, {injected} were injected"


def poison_quarantined(timeline: Timeline) -> Iterator[str]:
    """Requests that kill repeatedly and are not refused in time, or whose bystanders are never served."""
    for fault in timeline.faults:
        if not is_poison(fault.fault_class) or not timeline.run.own_codes or _server_process_faulted(timeline, fault):
            continue
        name = _fault_described(fault)
        refused = next((each for each in fault.attempts if each.end and each.end.code == QUARANTINED), None)
        refused_s = refused.ended_s if refused else math.inf
        deaths_s = [
            each.t for each in timeline.deaths if each.model == fault.victim and fault.start_s <= each.t <= fault.end_s
        ]
        if refused is None:
            yield f"{name} was sent {len(fault.attempts)} times and never refused"
        if len(deaths_s) > fault.fault_class.max_deaths:
            yield f"{name} cost {len(deaths_s)} deaths"
        if any(each > refused_s + RACE_S for each in deaths_s):
            yield f"{name} ended a worker after it had been refused"
        for each in fault.attempts:
            is_known = each.invoke.t > refused_s
            allowed = {QUARANTINED} if is_known else fault.fault_class.allowed_outcomes | FAILURE_CODES
            if each.end and (each.end.code or each.end.kind) not in allowed:
                yield f"{name} {'had been refused, and then' if is_known else 'was sent again'}: {_end_described(each)}"
        last = {each.invoke.repeats or each.invoke.id: each for each in fault.bystanders}
        for each in last.values():
            if not each.is_right:
                yield f"{_described(each)}, innocent beside {name}, was never served"


def nothing_leaked(timeline: Timeline) -> Iterator[str]:
    for report in timeline.leak_reports:
        for each in report.found:
            yield f"{report.when}: {each}"


RULES: Final[dict[str, Callable[[Timeline], Iterator[str]]]] = {
    "outcome": one_outcome,
    "bytes": right_bytes,
    "crossed": no_crossed_replies,
    "healthy": no_healthy_failures,
    "explained": failures_explained,
    "harm": fault_requests_answered,
    "refused": no_connection_refused,
    "death": deaths_match_faults,
    "back": victims_recover,
    "stale": no_stale_revision,
    "house": no_unplanned_restarts,
    "counted": metrics_agree,
    "poison": poison_quarantined,
    "left": nothing_leaked,
}
_CONTROLLER_FAULTS: Final = frozenset({"kill_brain", "stop_brain"})
"""While the controller is away, nothing is restarted and no event is written."""
_GATEWAY_FAULTS: Final = RESETTING_FAULTS - KEEPER_FAULTS
_RESTARTS: Final = {
    "brain_exit": _CONTROLLER_FAULTS,
    "gateway_exit": _GATEWAY_FAULTS,
    "grpc_front_exit": FRONT_FAULTS,
}
"""Events, and the faults that cause them."""
_MODEL_CHANGES: Final = frozenset({"model_loaded", "model_reloaded", "model_unloaded", "model_asleep"})


def _failed(timeline: Timeline) -> list[SentRequest]:
    """Requests that ended in an error or a broken connection; other rules cover the other outcomes."""
    return [each for each in timeline.requests.values() if each.end and each.end.kind in ("error", "reset")]


def _is_reset_by_fault(timeline: Timeline, request: SentRequest) -> bool:
    """Whether its connection broke with a gateway that a fault hit."""
    if request.end is None or request.end.kind != "reset":
        return False
    names = breaking_faults(request.invoke.via)
    return any(
        each.fault_class.name in names
        and each.start_s - RACE_S <= request.ended_s
        and request.invoke.t <= each.effect_end_s + RESET_GRACE_S
        for each in timeline.faults
    )


def _explains(timeline: Timeline, fault: InjectedFault, request: SentRequest) -> bool:
    """Whether the request may fail because of the fault, with the code that it got."""
    if request.end is not None and request.end.code == SEQUENCE_LOST:
        is_after = fault.start_s <= request.ended_s <= fault.start_s + SEQUENCE_MEMORY_S
        return is_after and bool(fault.fault_class.causes) and fault.victim == request.invoke.model
    if not fault.may_affect(request.invoke.t, request.ended_s) or fault.fault_class.spares_requests:
        return False
    if not timeline.run.own_codes:
        return bool(fault.fault_class.causes)
    code = request.end.code if request.end else ""
    match fault.fault_class.name:
        case "unload_load":
            return code in UNLOADED_CODES | FAILURE_CODES
        case "evict":
            return code in NO_ROOM_CODES
        case "group_load" if not fault.is_shared:  # its files are bad while its own worker comes back
            return code in FAILURE_CODES | {"model_failed"}
    if fault.is_shared and timeline.role(fault.victim) == ModelRole.ENSEMBLE:
        step = partner(fault.victim, ModelRole.CALLED)
        return code in FAILURE_CODES and request.end is not None and f"step '{step}'" in request.end.text
    if fault.is_shared:
        return code in SHARED_CODES
    return bool(fault.fault_class.causes) and code in _codes_near(timeline, fault)


def _codes_near(timeline: Timeline, fault: InjectedFault) -> frozenset[str]:
    """Codes that requests to its victim may get while its worker dies and the next one starts."""
    is_late = timeline.role(fault.victim) == ModelRole.HANGING
    return FAILURE_CODES | {LATE_CODE} if is_late else FAILURE_CODES


def _fault_behind(timeline: Timeline, death: WorkerDeath) -> InjectedFault | None:
    """The fault that explains a death; loads and unloads end workers too."""
    possible = [each for each in (*timeline.faults, *timeline.shared) if each.may_affect(death.t, death.t)]
    for fault in sorted(possible, key=lambda each: each.fault_class.name not in KEEPER_FAULTS):
        kills = fault.fault_class.method == FaultMethod.CONTROL or fault.fault_class.causes
        if fault.fault_class.name in KEEPER_FAULTS or (fault.victim == death.model and kills):
            return fault
    return None


def _has_evicted(timeline: Timeline, fault: InjectedFault) -> bool:
    """Whether a model went to sleep for another one meanwhile, or nobody could tell."""
    evicted = {"event": "model_asleep", "reason": "evicted"}
    return any(
        evicted.items() <= each.event.items() and fault.may_affect(each.t, each.t) for each in timeline.events
    ) or timeline.is_affected(fault.start_s, fault.end_s, _CONTROLLER_FAULTS | KEEPER_FAULTS)


def _was_replaced(timeline: Timeline, death: WorkerDeath) -> bool:
    """Whether a load or an unload stopped the worker in order. One that is requested while the controller is down may
    be carried out late, after its client has been told to try again."""
    return any(
        each.event.get("event") in _MODEL_CHANGES
        and each.event.get("model") == death.model
        and abs(each.t - death.t) < RECOVERY_LIMIT_S
        for each in timeline.events
    ) and any(
        each.event.get("event") == "worker_stopped" and each.event.get("pid") == death.pid for each in timeline.events
    )


def _had_no_effect(timeline: Timeline, fault: InjectedFault) -> bool:
    """Whether a fault killed nothing for a known reason: its request broke off or was served before the signal, it had
    no worker as victim, or it ended by itself while there was no controller to act on it."""
    request = fault.fault_request
    if request is None:
        over_s = fault.start_s + fault.fault_class.duration_s
        return bool(fault.note) or (over_s < math.inf and _is_after_fault(timeline, over_s, _CONTROLLER_FAULTS))
    return _is_reset_by_fault(timeline, request) or (request.is_right and "right" in fault.fault_class.allowed_outcomes)


def _wrong_cause(timeline: Timeline, fault: InjectedFault) -> Iterator[str]:
    if fault.death is None:
        return
    for each in timeline.events:
        event = each.event
        if (event.get("event"), event.get("model"), event.get("pid")) == ("worker_exit", fault.victim, fault.death.pid):
            cause = each.event.get("cause")
            if cause not in fault.fault_class.causes:
                yield f"{_fault_described(fault)} stands in the events as {cause!r}"


def _server_process_faulted(timeline: Timeline, fault: InjectedFault) -> bool:
    """Whether a process that has part of the poison list may have died meanwhile."""
    return any(
        each.fault_class.method == FaultMethod.SERVER_PROCESS
        and each.may_affect(fault.start_s - RECOVERY_LIMIT_S, fault.end_s)
        for each in timeline.faults
    )


def _is_after_fault(timeline: Timeline, at_s: float, names: frozenset[str]) -> bool:
    """Whether one of these faults was in effect in the RECOVERY_LIMIT_S before."""
    return timeline.is_affected(at_s - RECOVERY_LIMIT_S, at_s, names)


def _described(request: SentRequest) -> str:
    return f"request {request.invoke.id} to {request.invoke.model}"


def _fault_described(fault: InjectedFault) -> str:
    return f"fault {fault.number} ({fault.fault_class.name} of {fault.victim})"


def _end_described(request: SentRequest) -> str:
    assert request.end is not None, "it has an outcome"
    end = request.end
    return " ".join(str(each) for each in (end.kind, end.status or "", end.code, end.text) if each)
