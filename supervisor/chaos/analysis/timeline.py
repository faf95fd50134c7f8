"""Joins the records of a history: requests with their outcomes, injected faults with their consequences. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

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
from mmsup.supervisor.chaos.plan.catalog import FAULT_BY_NAME, RIGHT, FaultClass, ModelRole, hit_together

RACE_S: Final = 0.05
"""Two observations by different paths may be recorded in the wrong order if they are this close."""
_WORKER_ENDS: Final = frozenset({"worker_exit", "worker_stopped"})
Kind = TypeVar("Kind", bound=Record)
Answers = list[tuple[float, int]]
"""Right answers of a model: time and process id."""


@dataclass(frozen=True, slots=True)
class SentRequest:
    """A request and its outcomes, of which there should be exactly one."""

    invoke: Invoke
    outcomes: tuple[RequestOutcome, ...]

    @property
    def end(self) -> RequestOutcome | None:
        return self.outcomes[0] if self.outcomes else None

    @property
    def is_right(self) -> bool:
        return self.end is not None and self.end.kind == RIGHT

    @property
    def ended_s(self) -> float:
        """Time of the first outcome; infinite without one."""
        return self.end.t if self.end else math.inf


@dataclass(frozen=True, slots=True)
class Recovery:
    """The first right answer of the worker that followed a dead one."""

    at_s: float
    total_s: float
    """Since the death."""
    net_s: float
    """Without that worker's load time and the restart backoff that the server announced."""


@dataclass(frozen=True, slots=True)
class InjectedFault:
    fault_class: FaultClass
    victim: str
    number: int
    start_s: float
    end_s: float = math.inf
    """When the injection was complete."""
    note: str = ""
    attempts: tuple[SentRequest, ...] = ()
    """The request that triggers it, with its repetitions."""
    bystanders: tuple[SentRequest, ...] = ()
    """Requests that accompany it in the same batch."""
    death: WorkerDeath | None = None
    reported_s: float | None = None
    """When the event of the death was received."""
    recovery: Recovery | None = None
    is_shared: bool = False
    """What it does to a model that is hit together with its victim, which stands in the place of the victim here."""

    @property
    def fault_request(self) -> SentRequest | None:
        return self.attempts[0] if self.attempts else None

    @property
    def died_s(self) -> float | None:
        """When the victim died: by its pidfd, else by the outcome of the request that killed it."""
        if self.death is not None:
            return self.death.t
        request = self.fault_request
        if self.fault_class.causes and request is not None and request.end is not None and not request.is_right:
            return request.end.t
        return None

    @property
    def effect_end_s(self) -> float:
        """Until when it may affect requests."""
        if not self.fault_class.causes:
            return self.end_s
        if self.died_s is None:
            return self.end_s if self.fault_class.must_kill else math.inf
        return max(self.end_s, self.recovery.at_s if self.recovery else math.inf)

    def may_affect(self, start_s: float, end_s: float) -> bool:
        """Whether its effect overlaps this span of time."""
        return self.start_s - RACE_S <= end_s and start_s <= self.effect_end_s + RACE_S


@dataclass(slots=True)
class Timeline:
    """All records of a run, by kind and in order of time."""

    run: RunStarted
    requests: dict[int, SentRequest] = field(default_factory=dict[int, SentRequest])
    unmatched: list[RequestOutcome] = field(default_factory=list[RequestOutcome])
    """Outcomes of unknown requests."""
    faults: list[InjectedFault] = field(default_factory=list[InjectedFault])
    shared: list[InjectedFault] = field(default_factory=list[InjectedFault])
    """The same faults once more for each model that is hit together with their victims."""
    skipped: int = 0
    """Planned faults that could not be injected."""
    deaths: list[WorkerDeath] = field(default_factory=list[WorkerDeath])
    events: list[ServerEvent] = field(default_factory=list[ServerEvent])
    revisions: list[RevisionInForce] = field(default_factory=list[RevisionInForce])
    served_counts: list[ServedCounts] = field(default_factory=list[ServedCounts])
    leak_reports: list[LeakReport] = field(default_factory=list[LeakReport])
    restarts: list[ServerRestarted] = field(default_factory=list[ServerRestarted])

    def role(self, model: str) -> ModelRole:
        return ModelRole(self.run.models[model])

    def of_model(self, model: str) -> list[SentRequest]:
        return [each for each in self.requests.values() if each.invoke.model == model]

    def hits_on(self, model: str) -> list[InjectedFault]:
        """What faults did to a model: its own, and those of models that are hit together with it."""
        return [each for each in (*self.faults, *self.shared) if each.victim == model]

    def death_reports(self) -> Counter[tuple[str, int]]:
        """How often each death stands in the events, by model and process. Several instances of a model may be in one
        process, that of its group, while it is reloaded: each has an end of its own."""
        ends = [each.event for each in self.events if each.event.get("event") in _WORKER_ENDS]
        by_instance = Counter((each.get("model", ""), each.get("pid", 0), each.get("instance")) for each in ends)
        found = Counter[tuple[str, int]]()
        for (model, pid, _), count in by_instance.items():
            found[model, pid] = max(found[model, pid], count)
        return found

    def is_affected(self, start_s: float, end_s: float, names: frozenset[str]) -> bool:
        """Whether one of these faults may affect this span of time."""
        return any(each.fault_class.name in names and each.may_affect(start_s, end_s) for each in self.faults)


def timeline_of(records: Iterable[Record]) -> Timeline:
    """Join the records. ValueError without a RunStarted among them."""
    history = list(records)
    started = _of_kind(history, RunStarted)
    if not started:
        raise ValueError("a history without `began`: the run did not begin")
    timeline = Timeline(
        started[0],
        deaths=_of_kind(history, WorkerDeath),
        events=_of_kind(history, ServerEvent),
        revisions=_of_kind(history, RevisionInForce),
        served_counts=_of_kind(history, ServedCounts),
        leak_reports=_of_kind(history, LeakReport),
        restarts=_of_kind(history, ServerRestarted),
    )
    _add_requests(timeline, history)
    _add_faults(timeline, history)
    return timeline


def _of_kind(records: list[Record], kind: type[Kind]) -> list[Kind]:
    return [each for each in records if isinstance(each, kind)]


def _add_requests(timeline: Timeline, records: list[Record]) -> None:
    outcomes: dict[int, list[RequestOutcome]] = {}
    for outcome in _of_kind(records, RequestOutcome):
        outcomes.setdefault(outcome.id, []).append(outcome)
    for invoke in _of_kind(records, Invoke):
        timeline.requests[invoke.id] = SentRequest(invoke, tuple(outcomes.pop(invoke.id, ())))
    timeline.unmatched.extend(each for unmatched in outcomes.values() for each in unmatched)


def _add_faults(timeline: Timeline, records: list[Record]) -> None:
    finished = {each.number: each for each in _of_kind(records, FaultFinished)}
    injected = _of_kind(records, FaultInjected)
    done = [each for each in injected if each.done]
    timeline.skipped = len(injected) - len(done)
    attempts: dict[int, list[SentRequest]] = {}
    bystanders: dict[int, list[SentRequest]] = {}
    for request in timeline.requests.values():
        attempts.setdefault(request.invoke.strike, []).append(request)
        bystanders.setdefault(request.invoke.along, []).append(request)
    answers = {name: sorted(_right_answers(timeline, name)) for name in timeline.run.models}
    roles = {name: ModelRole(role) for name, role in timeline.run.models.items()}
    for each in done:
        together = hit_together(each.victim, roles)
        next_s = min((later.t for later in done if later.victim in together and later.t > each.t), default=math.inf)
        fault = InjectedFault(
            FAULT_BY_NAME[each.fault], each.victim, each.number, each.t,
            attempts=tuple(attempts.get(each.number, ())), bystanders=tuple(bystanders.get(each.number, ())),
        )  # fmt: skip
        if each.number in finished:
            fault = replace(fault, end_s=finished[each.number].t, note=finished[each.number].note)
        timeline.faults.append(_with_consequences(timeline, fault, next_s, answers))
        for model in together:
            if model != each.victim:
                other = _as_hit(fault, model)
                timeline.shared.append(_with_consequences(timeline, other, next_s, answers))


def _as_hit(fault: InjectedFault, model: str) -> InjectedFault:
    """What the fault does to a model that is hit together with its victim."""
    fault_class = replace(fault.fault_class, causes=fault.fault_class.shared_causes)
    return replace(fault, victim=model, fault_class=fault_class, attempts=(), bystanders=(), is_shared=True)


def _right_answers(timeline: Timeline, model: str) -> Answers:
    return [(each.end.t, each.end.pid) for each in timeline.of_model(model) if each.end and each.is_right]


def _with_consequences(
    timeline: Timeline, fault: InjectedFault, next_s: float, answers: Mapping[str, Answers]
) -> InjectedFault:
    """Add death, report and recovery. `next_s`: when the victim's next fault is injected."""
    if not fault.fault_class.causes:
        return fault
    since_s = fault.start_s - RACE_S
    deaths = (each for each in timeline.deaths if each.model == fault.victim and since_s <= each.t < next_s)
    dead = replace(fault, death=next(deaths, None))
    died_s, old_pid = dead.died_s, dead.death.pid if dead.death else 0
    if died_s is None:
        return fault
    report = _event(timeline, "worker_exit", fault.victim, old_pid)
    recovery = None
    for at_s, pid in answers[fault.victim]:
        if at_s > died_s and (not old_pid or (pid and pid != old_pid)):
            ready, total_s = _event(timeline, "worker_ready", fault.victim, pid), at_s - died_s
            waited_s = _seconds(report, "next_delay_s") + _seconds(ready, "load_s")
            recovery = Recovery(at_s, total_s, max(0.0, total_s - waited_s))
            break
    return replace(dead, recovery=recovery, reported_s=report.t if report else None)


def _seconds(event: ServerEvent | None, field_name: str) -> float:
    return float(event.event.get(field_name) or 0.0) if event else 0.0


def _event(timeline: Timeline, name: str, model: str, pid: int) -> ServerEvent | None:
    """The first event of this name about the model's process; None if its id is unknown (0)."""
    facts = {"event": name, "model": model, "pid": pid}
    found = (each for each in timeline.events if facts.items() <= each.event.items())
    return next(found, None) if pid else None
