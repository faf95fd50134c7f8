"""What is wrong in a history: the invariants of the fault table, each a rule over the story. Pure.

    outcome    every request has exactly one outcome (I9)         bytes     right bytes (I9)
    crossed    nothing crosses between requests or tenants (I9)   healthy   no failure on a healthy model
    explained  failures on a faulty model have a fault            harm      the request that did it got its own code
    refused    no connection is refused                           death     one death a fault, one entry a death (I10)
    back       the victim serves again, in bounded time           stale     nobody is served by what was taken away
    house      no restart of ours that was not brought about      counted   metrics tell the same (I10)
    left       nothing stays behind (I1 to I8)                    poison    who kills each time is refused, and alone

A bound here is one that a defect passes by far; how fast things were is told by figures.py.
"""

from __future__ import annotations

import bisect
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from mmsup.supervisor.chaos.analysis.timeline import (
    RACE_S,
    InjectedFault,
    SentRequest,
    Timeline,
    is_load_fault,
    timeline_of,
)
from mmsup.supervisor.chaos.observe.history import Record, WorkerDeath
from mmsup.supervisor.chaos.plan.catalog import (
    FAILURE_CODES,
    KEEPER_FAULTS,
    QUARANTINED,
    RESETTING_FAULTS,
    UNLOADED_CODES,
    FaultMethod,
    ModelRole,
)

ANSWER_LIMIT_S: Final = 5.0
"""From a death to the answers of those in flight; the promise is 0.1 s."""
RECOVERY_LIMIT_S: Final = 10.0
"""From a death to serving again, beyond load and pause; the promise is 1 s."""
RESET_GRACE_S: Final = 1.0
"""After a gateway came back its last broken connections are noticed."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong."""

    rule: str
    text: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.text}"


def check(records: Iterable[Record]) -> list[Finding]:
    """All findings, by rule. Empty: green."""
    story = timeline_of(records)
    return [Finding(name, text) for name, rule in RULES.items() for text in rule(story)]


def one_outcome(story: Timeline) -> Iterator[str]:
    """Lost and doubled replies."""
    for request in story.requests.values():
        kinds = [each.kind for each in request.outcomes]
        if not kinds:
            yield f"{_described(request)} has no outcome"
        elif kinds[0] == "timeout":
            yield f"{_described(request)} got no reply"
        elif len(kinds) > 1:
            yield f"{_described(request)} has {len(kinds)} outcomes: {', '.join(kinds)}"
    for outcome in story.unmatched:
        yield f"an outcome of no request: {outcome.kind} for {outcome.id}"


def right_bytes(story: Timeline) -> Iterator[str]:
    """Replies with bytes that are nobody's."""
    for request in story.requests.values():
        if any(each.kind == "wrong" for each in request.outcomes):
            yield f"{_described(request)} was answered with other bytes than it sent"


def no_crossed_replies(story: Timeline) -> Iterator[str]:
    """Replies with another request's bytes."""
    for request in story.requests.values():
        for each in request.outcomes:
            if each.kind == "crossed":
                owner = story.requests.get(each.whose)
                yield f"{_described(request)} got the bytes of {_described(owner) if owner else 'an unknown request'}"


def no_healthy_failures(story: Timeline) -> Iterator[str]:
    """Failures of models that nothing is done to."""
    for request in _failed(story):
        if story.role(request.invoke.model) == ModelRole.HEALTHY and not _is_reset_by_fault(story, request):
            yield f"{_described(request)} failed: {_end_described(request)}"


def failures_explained(story: Timeline) -> Iterator[str]:
    """Failures of faulty models without a fault that explains them."""
    for request in _failed(story):
        model = request.invoke.model
        if story.role(model) == ModelRole.HEALTHY or request.invoke.strike or _is_reset_by_fault(story, request):
            continue
        if not any(_explains(story, each, request) for each in story.faults if each.victim == model):
            yield f"{_described(request)} failed at {request.ended_s:.3f} s without a fault: {_end_described(request)}"


def fault_requests_answered(story: Timeline) -> Iterator[str]:
    """The outcome of the requests that did the harm."""
    for blow in story.faults:
        harm = blow.fault_request
        if harm is None or harm.end is None or not story.run.own_codes or _is_reset_by_fault(story, harm):
            continue
        said = harm.end.code or harm.end.kind
        allowed = blow.fault.allowed_outcomes | (FAILURE_CODES if _controller_was_down(story, harm) else frozenset())
        if said not in allowed:
            yield f"fault {blow.number} ({blow.fault.name} of {blow.victim}): {_end_described(harm)}; expected {_joined(allowed)}"
        late = _answer_delay_s(blow)
        if late > ANSWER_LIMIT_S:
            yield f"fault {blow.number} ({blow.fault.name} of {blow.victim}) was answered {late:.1f} s after the death"


def no_connection_refused(story: Timeline) -> Iterator[str]:
    """Connections that nobody took."""
    for request in story.requests.values():
        if any(each.kind == "refused" for each in request.outcomes):
            yield f"{_described(request)} found nobody at the door"


def deaths_match_faults(story: Timeline) -> Iterator[str]:
    """Deaths without a fault, faults without a death, deaths that the journal tells otherwise."""
    if not story.deaths:
        return  # nobody could see them
    told = Counter(each.event.get("pid") for each in story.events if each.event.get("event") in _WORKER_ENDS)
    for death in story.deaths:
        blow = _fault_behind(story, death)
        if blow is None:
            yield f"a worker of {death.model} died at {death.t:.3f} s without a fault"
        elif blow.fault.name in KEEPER_FAULTS:
            continue  # who keeps the journal died as well
        elif story.events and told[death.pid] != 1 and not _is_after_fault(story, death.t, *_CONTROLLER_FAULTS):
            yield f"the death of {death.model} at {death.t:.3f} s stands {told[death.pid]} times in the journal"
    for blow in story.faults:
        if blow.fault.causes and blow.fault.must_kill and blow.death is None and not _had_no_effect(story, blow):
            yield f"fault {blow.number} ({blow.fault.name} of {blow.victim}) killed nobody"
        yield from _wrong_cause(story, blow)


def victims_recover(story: Timeline) -> Iterator[str]:
    """Victims that did not come back, or late."""
    for blow in story.faults:
        if blow.died_s is None:
            continue
        if blow.recovered_s is None:
            yield f"{blow.victim} did not serve again after fault {blow.number} ({blow.fault.name})"
        elif recovery_s(blow) > RECOVERY_LIMIT_S and not _is_after_fault(
            story, blow.recovered_s, *_CONTROLLER_FAULTS, *RESETTING_FAULTS
        ):
            yield f"{blow.victim} came back {recovery_s(blow):.1f} s late after fault {blow.number} ({blow.fault.name})"


def no_stale_revision(story: Timeline) -> Iterator[str]:
    """Answers by an edition that had been replaced or unloaded when the request went out."""
    for model in {each.model for each in story.revisions}:
        editions = sorted((each for each in story.revisions if each.model == model), key=lambda each: each.t)
        times = [each.t for each in editions]
        for request in story.of_model(model):
            at = bisect.bisect_left(times, request.invoke.t) - 1
            if at < 0 or request.end is None or not request.is_right:
                continue
            ends_s = times[at + 1] if at + 1 < len(times) else float("inf")
            if editions[at].revision == 0 and request.end.t < ends_s:
                yield f"{_described(request)} was served after {model} had been unloaded"
            elif request.end.revision < editions[at].revision:
                yield (
                    f"{_described(request)} was served by edition {request.end.revision} of {model} "
                    f"after edition {editions[at].revision} had taken its place"
                )


def no_unplanned_restarts(story: Timeline) -> Iterator[str]:
    """Restarts of brain and gateways that nobody brought about."""
    for event, names in (
        ("brain_exit", _CONTROLLER_FAULTS),
        ("gateway_exit", ("kill_gateway", "stop_gateway")),
    ):
        seen = sum(each.event.get("event") == event for each in story.events)
        done = sum(each.fault.name in names for each in story.faults)
        if seen > done:
            yield f"{seen} times {event}, {done} were brought about"


def metrics_agree(story: Timeline) -> Iterator[str]:
    """What the server counted as served, beside what its clients saw."""
    if len(story.served_counts) != 2 or any(each.fault.name in KEEPER_FAULTS for each in story.faults):
        return  # who counted is gone, and has told nobody
    before, after = story.served_counts
    hidden = sum(each.fault.name == "leave" for each in story.faults)
    for model in story.run.models:
        requests = story.of_model(model)
        right = sum(each.is_right for each in requests)
        unseen = sum(each.end is None or each.end.kind not in ("right", "error") for each in requests) + hidden
        served = after.success.get(model, 0) - before.success.get(model, 0)
        if not right <= served <= right + unseen:
            yield f"{model}: the server counted {served:.0f} served, its clients {right} to {right + unseen}"


def poison_quarantined(story: Timeline) -> Iterator[str]:
    """Requests that end their worker each time and are not refused in time, or take others along for good."""
    for blow in story.faults:
        if not blow.fault.is_poison or not story.run.own_codes or _server_process_faulted(story, blow):
            continue
        name = f"fault {blow.number} ({blow.fault.name} of {blow.victim})"
        refused = next((each for each in blow.attempts if each.end and each.end.code == QUARANTINED), None)
        since_s = refused.ended_s if refused else math.inf
        ended = [each.t for each in story.deaths if each.model == blow.victim and blow.start_s <= each.t <= blow.end_s]
        if refused is None:
            yield f"{name} was sent {len(blow.attempts)} times and never refused"
        if len(ended) > blow.fault.max_deaths:
            yield f"{name} cost {len(ended)} deaths"
        if any(each > since_s + RACE_S for each in ended):
            yield f"{name} ended a worker after it had been refused"
        for each in blow.attempts:
            is_known = each.invoke.t > since_s
            allowed = {QUARANTINED} if is_known else blow.fault.allowed_outcomes | FAILURE_CODES
            if each.end and (each.end.code or each.end.kind) not in allowed:
                yield f"{name} {'had been refused, and then' if is_known else 'was sent again'}: {_end_described(each)}"
        last = {each.invoke.repeats or each.invoke.id: each for each in blow.bystanders}
        for each in last.values():
            if not each.is_right:
                yield f"{_described(each)}, innocent beside {name}, was never served"


def nothing_leaked(story: Timeline) -> Iterator[str]:
    """What stayed behind."""
    for look in story.leak_reports:
        for each in look.found:
            yield f"{look.when}: {each}"


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
_CONTROLLER_FAULTS: Final = ("kill_brain", "stop_brain")
"""Faults after which nobody decides, or writes into the journal, for a while."""
_MODEL_CHANGES: Final = frozenset({"model_loaded", "model_reloaded", "model_unloaded"})
_WORKER_ENDS: Final = frozenset({"worker_exit", "worker_stopped"})


def recovery_s(blow: InjectedFault) -> float:
    """How long beyond the new life's own load and the announced pause it took to serve again."""
    assert blow.died_s is not None, "it did not die"
    assert blow.recovered_s is not None, "it did not come back"
    return max(0.0, blow.recovered_s - blow.died_s - blow.load_s - blow.pause_s)


def _answer_delay_s(blow: InjectedFault) -> float:
    if (
        blow.death is None
        or blow.fault_request is None
        or blow.fault_request.end is None
        or blow.fault_request.is_right
    ):
        return 0.0
    return blow.fault_request.end.t - blow.death.t


def _failed(story: Timeline) -> list[SentRequest]:
    """Requests that ended in an error or a broken connection; other rules speak of the rest."""
    return [each for each in story.requests.values() if each.end and each.end.kind in ("error", "reset")]


def _is_reset_by_fault(story: Timeline, request: SentRequest) -> bool:
    """Whether its connection broke because a gateway was hurt."""
    if request.end is None or request.end.kind != "reset":
        return False
    return any(
        each.fault.name in RESETTING_FAULTS
        and each.start_s - RACE_S <= request.ended_s
        and request.invoke.t <= each.effect_end_s + RESET_GRACE_S
        for each in story.faults
    )


def _explains(story: Timeline, blow: InjectedFault, request: SentRequest) -> bool:
    if not blow.may_affect(request.invoke.t, request.ended_s):
        return False
    if not story.run.own_codes:
        return bool(blow.fault.causes)
    code = request.end.code if request.end else ""
    if blow.fault.name == "unload_load":
        return code in UNLOADED_CODES | FAILURE_CODES
    return bool(blow.fault.causes) and code in FAILURE_CODES


def _fault_behind(story: Timeline, death: WorkerDeath) -> InjectedFault | None:
    """The fault that explains a death; one that is done by loading ends workers too."""
    felt = [each for each in story.faults if each.may_affect(death.t, death.t)]
    for blow in sorted(felt, key=lambda each: each.fault.name not in KEEPER_FAULTS):
        ends = is_load_fault(blow) or blow.fault.causes
        if blow.fault.name in KEEPER_FAULTS or (blow.victim == death.model and ends):
            return blow
    return next((each for each in story.faults if each.victim == death.model and _was_replaced(story, death)), None)


def _was_replaced(story: Timeline, death: WorkerDeath) -> bool:
    """Whether a load or an unload had ended it in good order. One that was asked for while no brain was there may be
    done late, after whoever asked was told to try again."""
    return any(
        each.event.get("event") in _MODEL_CHANGES
        and each.event.get("model") == death.model
        and abs(each.t - death.t) < RECOVERY_LIMIT_S
        for each in story.events
    ) and any(
        each.event.get("event") == "worker_stopped" and each.event.get("pid") == death.pid for each in story.events
    )


def _had_no_effect(story: Timeline, blow: InjectedFault) -> bool:
    """Whether it met nobody: its request broke off, or was not to be at work when the signal came, or it was over
    before there was somebody to act on it."""
    if blow.fault_request is None:
        ends_s = blow.start_s + blow.fault.duration_s
        return bool(blow.note) or (ends_s < math.inf and _is_after_fault(story, ends_s, *_CONTROLLER_FAULTS))
    return _is_reset_by_fault(story, blow.fault_request) or (
        blow.fault_request.is_right and "right" in blow.fault.allowed_outcomes
    )


def _wrong_cause(story: Timeline, blow: InjectedFault) -> Iterator[str]:
    if blow.death is None:
        return
    for each in story.events:
        if each.event.get("event") == "worker_exit" and each.event.get("pid") == blow.death.pid:
            word = each.event.get("cause")
            if word not in blow.fault.causes:
                yield f"fault {blow.number} ({blow.fault.name} of {blow.victim}) is in the journal as {word!r}"


def _controller_was_down(story: Timeline, request: SentRequest) -> bool:
    return any(
        each.fault.name in _CONTROLLER_FAULTS and each.may_affect(request.invoke.t, request.ended_s)
        for each in story.faults
    )


def _server_process_faulted(story: Timeline, blow: InjectedFault) -> bool:
    """Whether a process that knows the suspects can have gone meanwhile, and what it alone knew."""
    return any(
        each.fault.method == FaultMethod.SERVER_PROCESS and each.may_affect(blow.start_s - RECOVERY_LIMIT_S, blow.end_s)
        for each in story.faults
    )


def _is_after_fault(story: Timeline, at_s: float, *names: str) -> bool:
    return any(each.fault.name in names and each.may_affect(at_s - RECOVERY_LIMIT_S, at_s) for each in story.faults)


def _described(request: SentRequest) -> str:
    return f"request {request.invoke.id} to {request.invoke.model}"


def _end_described(request: SentRequest) -> str:
    assert request.end is not None, "it has an outcome"
    end = request.end
    return " ".join(str(each) for each in (end.kind, end.status or "", end.code, end.text) if each)


def _joined(words: Iterable[str]) -> str:
    return " or ".join(sorted(words))
