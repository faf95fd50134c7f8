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

from mmsup.supervisor.chaos.analysis.timeline import RACE_S, Blow, Request, Story, is_control, story_of
from mmsup.supervisor.chaos.observe.history import Death, Record
from mmsup.supervisor.chaos.plan.catalog import ABSENT, KEEPER, QUARANTINED, RESETTING, TROUBLE, By, Role

ANSWER_S: Final = 5.0
"""From a death to the answers of those in flight; the promise is 0.1 s."""
BACK_S: Final = 10.0
"""From a death to serving again, beyond load and pause; the promise is 1 s."""
RESETTLED_S: Final = 1.0
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
    story = story_of(records)
    return [Finding(name, text) for name, rule in RULES.items() for text in rule(story)]


def one_outcome(story: Story) -> Iterator[str]:
    """Lost and doubled replies."""
    for request in story.requests.values():
        kinds = [each.kind for each in request.outcomes]
        if not kinds:
            yield f"{_name(request)} has no outcome"
        elif kinds[0] == "timeout":
            yield f"{_name(request)} got no reply"
        elif len(kinds) > 1:
            yield f"{_name(request)} has {len(kinds)} outcomes: {', '.join(kinds)}"
    for outcome in story.strangers:
        yield f"an outcome of no request: {outcome.kind} for {outcome.id}"


def right_bytes(story: Story) -> Iterator[str]:
    """Replies with bytes that are nobody's."""
    for request in story.requests.values():
        if any(each.kind == "wrong" for each in request.outcomes):
            yield f"{_name(request)} was answered with other bytes than it sent"


def nothing_crossed(story: Story) -> Iterator[str]:
    """Replies with another request's bytes."""
    for request in story.requests.values():
        for each in request.outcomes:
            if each.kind == "crossed":
                owner = story.requests.get(each.whose)
                yield f"{_name(request)} got the bytes of {_name(owner) if owner else 'an unknown request'}"


def healthy_unharmed(story: Story) -> Iterator[str]:
    """Failures of models that nothing is done to."""
    for request in _failed(story):
        if story.role(request.invoke.model) == Role.HEALTHY and not _is_reset(story, request):
            yield f"{_name(request)} failed: {_how(request)}"


def explained(story: Story) -> Iterator[str]:
    """Failures of faulty models without a fault that explains them."""
    for request in _failed(story):
        model = request.invoke.model
        if story.role(model) == Role.HEALTHY or request.invoke.strike or _is_reset(story, request):
            continue
        if not any(_explains(story, each, request) for each in story.blows if each.victim == model):
            yield f"{_name(request)} failed at {request.ended_s:.3f} s without a fault: {_how(request)}"


def harm_answered(story: Story) -> Iterator[str]:
    """The outcome of the requests that did the harm."""
    for blow in story.blows:
        harm = blow.harm
        if harm is None or harm.end is None or not story.began.own_codes or _is_reset(story, harm):
            continue
        said = harm.end.code or harm.end.kind
        allowed = blow.fault.answers | (TROUBLE if _brain_was_away(story, harm) else frozenset())
        if said not in allowed:
            yield f"fault {blow.number} ({blow.fault.name} of {blow.victim}): {_how(harm)}; expected {_or(allowed)}"
        late = _late(blow)
        if late > ANSWER_S:
            yield f"fault {blow.number} ({blow.fault.name} of {blow.victim}) was answered {late:.1f} s after the death"


def nobody_refused(story: Story) -> Iterator[str]:
    """Connections that nobody took."""
    for request in story.requests.values():
        if any(each.kind == "refused" for each in request.outcomes):
            yield f"{_name(request)} found nobody at the door"


def deaths(story: Story) -> Iterator[str]:
    """Deaths without a fault, faults without a death, deaths that the journal tells otherwise."""
    if not story.deaths:
        return  # nobody could see them
    told = Counter(each.event.get("pid") for each in story.told if each.event.get("event") in _ENDS)
    for death in story.deaths:
        blow = _blow_of(story, death)
        if blow is None:
            yield f"a worker of {death.model} died at {death.t:.3f} s without a fault"
        elif blow.fault.name in KEEPER:
            continue  # who keeps the journal died as well
        elif story.told and told[death.pid] != 1 and not _around(story, death.t, *_WITHOUT_BRAIN):
            yield f"the death of {death.model} at {death.t:.3f} s stands {told[death.pid]} times in the journal"
    for blow in story.blows:
        if blow.fault.cause and blow.fault.is_deadly and blow.death is None and not _is_spent(story, blow):
            yield f"fault {blow.number} ({blow.fault.name} of {blow.victim}) killed nobody"
        yield from _cause(story, blow)


def back_again(story: Story) -> Iterator[str]:
    """Victims that did not come back, or late."""
    for blow in story.blows:
        if blow.died_s is None:
            continue
        if blow.back_s is None:
            yield f"{blow.victim} did not serve again after fault {blow.number} ({blow.fault.name})"
        elif recovery_s(blow) > BACK_S and not _around(story, blow.back_s, *_WITHOUT_BRAIN, *RESETTING):
            yield f"{blow.victim} came back {recovery_s(blow):.1f} s late after fault {blow.number} ({blow.fault.name})"


def not_stale(story: Story) -> Iterator[str]:
    """Answers by an edition that had been replaced or unloaded when the request went out."""
    for model in {each.model for each in story.editions}:
        editions = sorted((each for each in story.editions if each.model == model), key=lambda each: each.t)
        times = [each.t for each in editions]
        for request in story.of_model(model):
            at = bisect.bisect_left(times, request.invoke.t) - 1
            if at < 0 or request.end is None or not request.is_right:
                continue
            ends_s = times[at + 1] if at + 1 < len(times) else float("inf")
            if editions[at].revision == 0 and request.end.t < ends_s:
                yield f"{_name(request)} was served after {model} had been unloaded"
            elif request.end.revision < editions[at].revision:
                yield (
                    f"{_name(request)} was served by edition {request.end.revision} of {model} "
                    f"after edition {editions[at].revision} had taken its place"
                )


def house_stands(story: Story) -> Iterator[str]:
    """Restarts of brain and gateways that nobody brought about."""
    for event, names in (
        ("brain_exit", _WITHOUT_BRAIN),
        ("gateway_exit", ("kill_gateway", "stop_gateway")),
    ):
        seen = sum(each.event.get("event") == event for each in story.told)
        done = sum(each.fault.name in names for each in story.blows)
        if seen > done:
            yield f"{seen} times {event}, {done} were brought about"


def counted_alike(story: Story) -> Iterator[str]:
    """What the server counted as served, beside what its clients saw."""
    if len(story.counted) != 2 or any(each.fault.name in KEEPER for each in story.blows):
        return  # who counted is gone, and has told nobody
    before, after = story.counted
    hidden = sum(each.fault.name == "leave" for each in story.blows)
    for model in story.began.models:
        requests = story.of_model(model)
        right = sum(each.is_right for each in requests)
        unseen = sum(each.end is None or each.end.kind not in ("right", "error") for each in requests) + hidden
        served = after.success.get(model, 0) - before.success.get(model, 0)
        if not right <= served <= right + unseen:
            yield f"{model}: the server counted {served:.0f} served, its clients {right} to {right + unseen}"


def poison_refused(story: Story) -> Iterator[str]:
    """Requests that end their worker each time and are not refused in time, or take others along for good."""
    for blow in story.blows:
        if not blow.fault.insists or not story.began.own_codes or _house_was_hurt(story, blow):
            continue
        name = f"fault {blow.number} ({blow.fault.name} of {blow.victim})"
        refused = next((each for each in blow.tries if each.end and each.end.code == QUARANTINED), None)
        since_s = refused.ended_s if refused else math.inf
        ended = [each.t for each in story.deaths if each.model == blow.victim and blow.from_s <= each.t <= blow.over_s]
        if refused is None:
            yield f"{name} was sent {len(blow.tries)} times and never refused"
        if len(ended) > blow.fault.deaths:
            yield f"{name} cost {len(ended)} deaths"
        if any(each > since_s + RACE_S for each in ended):
            yield f"{name} ended a worker after it had been refused"
        for each in blow.tries:
            is_known = each.invoke.t > since_s
            allowed = {QUARANTINED} if is_known else blow.fault.answers | TROUBLE
            if each.end and (each.end.code or each.end.kind) not in allowed:
                yield f"{name} {'had been refused, and then' if is_known else 'was sent again'}: {_how(each)}"
        last = {each.invoke.repeats or each.invoke.id: each for each in blow.beside}
        for each in last.values():
            if not each.is_right:
                yield f"{_name(each)}, innocent beside {name}, was never served"


def nothing_left(story: Story) -> Iterator[str]:
    """What stayed behind."""
    for look in story.left:
        for each in look.found:
            yield f"{look.when}: {each}"


RULES: Final[dict[str, Callable[[Story], Iterator[str]]]] = {
    "outcome": one_outcome,
    "bytes": right_bytes,
    "crossed": nothing_crossed,
    "healthy": healthy_unharmed,
    "explained": explained,
    "harm": harm_answered,
    "refused": nobody_refused,
    "death": deaths,
    "back": back_again,
    "stale": not_stale,
    "house": house_stands,
    "counted": counted_alike,
    "poison": poison_refused,
    "left": nothing_left,
}
_WITHOUT_BRAIN: Final = ("kill_brain", "stop_brain")
"""Faults after which nobody decides, or writes into the journal, for a while."""
_CHANGES: Final = frozenset({"model_loaded", "model_reloaded", "model_unloaded"})
_ENDS: Final = frozenset({"worker_exit", "worker_stopped"})


def recovery_s(blow: Blow) -> float:
    """How long beyond the new life's own load and the announced pause it took to serve again."""
    assert blow.died_s is not None, "it did not die"
    assert blow.back_s is not None, "it did not come back"
    return max(0.0, blow.back_s - blow.died_s - blow.load_s - blow.pause_s)


def _late(blow: Blow) -> float:
    if blow.death is None or blow.harm is None or blow.harm.end is None or blow.harm.is_right:
        return 0.0
    return blow.harm.end.t - blow.death.t


def _failed(story: Story) -> list[Request]:
    """Requests that ended in an error or a broken connection; other rules speak of the rest."""
    return [each for each in story.requests.values() if each.end and each.end.kind in ("error", "reset")]


def _is_reset(story: Story, request: Request) -> bool:
    """Whether its connection broke because a gateway was hurt."""
    if request.end is None or request.end.kind != "reset":
        return False
    return any(
        each.fault.name in RESETTING
        and each.from_s - RACE_S <= request.ended_s
        and request.invoke.t <= each.until_s + RESETTLED_S
        for each in story.blows
    )


def _explains(story: Story, blow: Blow, request: Request) -> bool:
    if not blow.is_felt(request.invoke.t, request.ended_s):
        return False
    if not story.began.own_codes:
        return bool(blow.fault.cause)
    code = request.end.code if request.end else ""
    if blow.fault.name == "unload_load":
        return code in ABSENT | TROUBLE
    return bool(blow.fault.cause) and code in TROUBLE


def _blow_of(story: Story, death: Death) -> Blow | None:
    """The fault that explains a death; one that is done by loading ends workers too."""
    felt = [each for each in story.blows if each.is_felt(death.t, death.t)]
    for blow in sorted(felt, key=lambda each: each.fault.name not in KEEPER):
        ends = is_control(blow) or blow.fault.cause
        if blow.fault.name in KEEPER or (blow.victim == death.model and ends):
            return blow
    return next((each for each in story.blows if each.victim == death.model and _was_renewed(story, death)), None)


def _was_renewed(story: Story, death: Death) -> bool:
    """Whether a load or an unload had ended it in good order. One that was asked for while no brain was there may be
    done late, after whoever asked was told to try again."""
    return any(
        each.event.get("event") in _CHANGES
        and each.event.get("model") == death.model
        and abs(each.t - death.t) < BACK_S
        for each in story.told
    ) and any(each.event.get("event") == "worker_stopped" and each.event.get("pid") == death.pid for each in story.told)


def _is_spent(story: Story, blow: Blow) -> bool:
    """Whether it met nobody: its request broke off, or was not to be at work when the signal came, or it was over
    before there was somebody to act on it."""
    if blow.harm is None:
        ends_s = blow.from_s + blow.fault.lasts_s
        return bool(blow.note) or (ends_s < math.inf and _around(story, ends_s, *_WITHOUT_BRAIN))
    return _is_reset(story, blow.harm) or (blow.harm.is_right and "right" in blow.fault.answers)


def _cause(story: Story, blow: Blow) -> Iterator[str]:
    if blow.death is None:
        return
    for each in story.told:
        if each.event.get("event") == "worker_exit" and each.event.get("pid") == blow.death.pid:
            word = each.event.get("cause")
            if word not in blow.fault.cause:
                yield f"fault {blow.number} ({blow.fault.name} of {blow.victim}) is in the journal as {word!r}"


def _brain_was_away(story: Story, request: Request) -> bool:
    return any(
        each.fault.name in _WITHOUT_BRAIN and each.is_felt(request.invoke.t, request.ended_s) for each in story.blows
    )


def _house_was_hurt(story: Story, blow: Blow) -> bool:
    """Whether a process that knows the suspects can have gone meanwhile, and what it alone knew."""
    return any(each.fault.by == By.HOUSE and each.is_felt(blow.from_s - BACK_S, blow.over_s) for each in story.blows)


def _around(story: Story, at_s: float, *names: str) -> bool:
    return any(each.fault.name in names and each.is_felt(at_s - BACK_S, at_s) for each in story.blows)


def _name(request: Request) -> str:
    return f"request {request.invoke.id} to {request.invoke.model}"


def _how(request: Request) -> str:
    assert request.end is not None, "it has an outcome"
    end = request.end
    return " ".join(str(each) for each in (end.kind, end.status or "", end.code, end.text) if each)


def _or(words: Iterable[str]) -> str:
    return " or ".join(sorted(words))
