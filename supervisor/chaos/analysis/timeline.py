"""A history, put in order: requests with their outcomes, faults with what followed from them. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Final

from mmsup.supervisor.chaos.observe.history import (
    FaultFinished,
    FaultInjected,
    Invoke,
    LeakReport,
    Record,
    RequestOutcome,
    RevisionInForce,
    RunStarted,
    ServedCounts,
    ServerEvent,
    ServerRestarted,
    WorkerDeath,
)
from mmsup.supervisor.chaos.plan.catalog import FAULT_BY_NAME, RIGHT, FaultClass, FaultMethod, ModelRole

RACE_S: Final = 0.05
"""By how much an order of two things that we saw on different ways may be wrong."""


@dataclass(frozen=True, slots=True)
class SentRequest:
    """A request, and what is said of its end."""

    invoke: Invoke
    outcomes: tuple[RequestOutcome, ...]

    @property
    def end(self) -> RequestOutcome | None:
        """Its first outcome."""
        return self.outcomes[0] if self.outcomes else None

    @property
    def is_right(self) -> bool:
        """Whether it was served."""
        return self.end is not None and self.end.kind == RIGHT

    @property
    def ended_s(self) -> float:
        """When; never, without an outcome."""
        return self.end.t if self.end else math.inf


@dataclass(frozen=True, slots=True)
class InjectedFault:
    """One fault that was brought about, and what followed."""

    fault: FaultClass
    victim: str
    number: int
    start_s: float
    end_s: float
    """When what was to be done was done."""
    note: str = ""
    fault_request: SentRequest | None = None
    attempts: tuple[SentRequest, ...] = ()
    """The request that does it, as often as it was sent."""
    bystanders: tuple[SentRequest, ...] = ()
    """Requests that were to be together with it."""
    death: WorkerDeath | None = None
    recovered_s: float | None = None
    """The first right answer of another life after the death."""
    load_s: float = 0.0
    """What that life itself needed to load."""
    pause_s: float = 0.0
    """The pause that the server announced."""
    reported_s: float | None = None
    """When the journal said that it died."""

    @property
    def died_s(self) -> float | None:
        """When the victim died: by the kernel's word, else by the outcome of the request that killed it."""
        if self.death is not None:
            return self.death.t
        if (
            self.fault.causes
            and self.fault_request is not None
            and self.fault_request.end is not None
            and not self.fault_request.is_right
        ):
            return self.fault_request.end.t
        return None

    @property
    def effect_end_s(self) -> float:
        """Until when it may be felt."""
        if not self.fault.causes:
            return self.end_s
        if self.died_s is None:
            return self.end_s if self.fault.must_kill else math.inf
        return max(self.end_s, math.inf if self.recovered_s is None else self.recovered_s)

    def may_affect(self, start_s: float, end_s: float) -> bool:
        """Whether it can have touched something that lasted from then to then."""
        return self.start_s - RACE_S <= end_s and start_s <= self.effect_end_s + RACE_S


@dataclass(slots=True)
class Timeline:
    """Everything, by kind and in order."""

    run: RunStarted
    requests: dict[int, SentRequest] = field(default_factory=dict[int, SentRequest])
    unmatched: list[RequestOutcome] = field(default_factory=list[RequestOutcome])
    """Outcomes of no request."""
    faults: list[InjectedFault] = field(default_factory=list[InjectedFault])
    skipped: int = 0
    """Faults of the plan that could not be brought about."""
    deaths: list[WorkerDeath] = field(default_factory=list[WorkerDeath])
    events: list[ServerEvent] = field(default_factory=list[ServerEvent])
    revisions: list[RevisionInForce] = field(default_factory=list[RevisionInForce])
    served_counts: list[ServedCounts] = field(default_factory=list[ServedCounts])
    leak_reports: list[LeakReport] = field(default_factory=list[LeakReport])
    restarts: list[ServerRestarted] = field(default_factory=list[ServerRestarted])

    def role(self, model: str) -> ModelRole:
        """What a model is there for."""
        return ModelRole(self.run.models[model])

    def of_model(self, model: str) -> list[SentRequest]:
        """Its requests, oldest first."""
        return [each for each in self.requests.values() if each.invoke.model == model]


def timeline_of(records: Iterable[Record]) -> Timeline:
    """The records in order. ValueError if `Began` is not among them."""
    given = list(records)
    began = [each for each in given if isinstance(each, RunStarted)]
    if not began:
        raise ValueError("a history without `began`: the run did not begin")
    story = Timeline(
        began[0],
        deaths=[each for each in given if isinstance(each, WorkerDeath)],
        events=[each for each in given if isinstance(each, ServerEvent)],
        revisions=[each for each in given if isinstance(each, RevisionInForce)],
        served_counts=[each for each in given if isinstance(each, ServedCounts)],
        leak_reports=[each for each in given if isinstance(each, LeakReport)],
        restarts=[each for each in given if isinstance(each, ServerRestarted)],
    )
    _add_requests(story, given)
    _add_faults(story, given)
    return story


def _add_requests(story: Timeline, records: list[Record]) -> None:
    ends: dict[int, list[RequestOutcome]] = {}
    for each in records:
        if isinstance(each, RequestOutcome):
            ends.setdefault(each.id, []).append(each)
    for each in records:
        if isinstance(each, Invoke):
            story.requests[each.id] = SentRequest(each, tuple(ends.pop(each.id, ())))
    story.unmatched.extend(outcome for left in ends.values() for outcome in left)


def _add_faults(story: Timeline, records: list[Record]) -> None:
    over = {each.number: each for each in records if isinstance(each, FaultFinished)}
    injected = [each for each in records if isinstance(each, FaultInjected)]
    done = [each for each in injected if each.done]
    story.skipped = len(injected) - len(done)
    tries: dict[int, list[SentRequest]] = {}
    beside: dict[int, list[SentRequest]] = {}
    for request in story.requests.values():
        tries.setdefault(request.invoke.strike, []).append(request)
        beside.setdefault(request.invoke.along, []).append(request)
    right = {name: sorted(_right_answers(story, name)) for name in story.run.models}
    for each in done:
        after = [later.t for later in done if later.victim == each.victim and later.t > each.t]
        done_to = InjectedFault(
            FAULT_BY_NAME[each.fault], each.victim, each.number, each.t, math.inf,
            attempts=tuple(tries.get(each.number, ())), bystanders=tuple(beside.get(each.number, ())),
        )  # fmt: skip
        story.faults.append(
            _with_consequences(story, done_to, over.get(each.number), min(after, default=math.inf), right)
        )


def _right_answers(story: Timeline, model: str) -> list[tuple[float, int]]:
    """Right answers of a model: when, and of which process."""
    return [(each.end.t, each.end.pid) for each in story.of_model(model) if each.end and each.is_right]


def _with_consequences(
    story: Timeline,
    done: InjectedFault,
    over: FaultFinished | None,
    next_s: float,
    right: dict[str, list[tuple[float, int]]],
) -> InjectedFault:
    """What followed from a fault. `next_s`: when its victim is hurt next; `right`: the right answers of each model."""
    harm = done.attempts[0] if done.attempts else None
    bare = replace(done, end_s=over.t if over else math.inf, note=over.note if over else "", fault_request=harm)
    if not done.fault.causes:
        return bare
    found = (each for each in story.deaths if each.model == done.victim and done.start_s - RACE_S <= each.t < next_s)
    dead = replace(bare, death=next(found, None))
    died_s, gone = dead.died_s, dead.death.pid if dead.death else 0
    if died_s is None:
        return bare
    back = next(((t, pid) for t, pid in right[done.victim] if t > died_s and (not gone or (pid and pid != gone))), None)
    back_s, pid = back if back else (None, 0)
    exits = [
        each for each in story.events if each.event.get("event") == "worker_exit" and each.event.get("pid") == gone
    ]
    ready = [
        each for each in story.events if each.event.get("event") == "worker_ready" and each.event.get("pid") == pid
    ]
    return replace(
        dead,
        recovered_s=back_s,
        load_s=float(ready[0].event.get("load_s") or 0.0) if ready and pid else 0.0,
        pause_s=float(exits[0].event.get("next_delay_s") or 0.0) if exits and gone else 0.0,
        reported_s=exits[0].t if exits and gone else None,
    )


def is_load_fault(blow: InjectedFault) -> bool:
    """Whether it was done by loading or unloading."""
    return blow.fault.method == FaultMethod.CONTROL
