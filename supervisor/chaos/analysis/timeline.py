"""A history, put in order: requests with their outcomes, faults with what followed from them. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Final

from mmsup.supervisor.chaos.observe.history import (
    Began,
    Counted,
    Death,
    Edition,
    Injected,
    Invoke,
    Left,
    Outcome,
    Over,
    Record,
    Restarted,
    Told,
)
from mmsup.supervisor.chaos.plan.catalog import BY_NAME, RIGHT, By, Fault, Role

RACE_S: Final = 0.05
"""By how much an order of two things that we saw on different ways may be wrong."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request, and what is said of its end."""

    invoke: Invoke
    outcomes: tuple[Outcome, ...]

    @property
    def end(self) -> Outcome | None:
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
class Blow:
    """One fault that was brought about, and what followed."""

    fault: Fault
    victim: str
    number: int
    from_s: float
    over_s: float
    """When what was to be done was done."""
    note: str = ""
    harm: Request | None = None
    tries: tuple[Request, ...] = ()
    """The request that does it, as often as it was sent."""
    beside: tuple[Request, ...] = ()
    """Requests that were to be together with it."""
    death: Death | None = None
    back_s: float | None = None
    """The first right answer of another life after the death."""
    load_s: float = 0.0
    """What that life itself needed to load."""
    pause_s: float = 0.0
    """The pause that the server announced."""
    told_s: float | None = None
    """When the journal said that it died."""

    @property
    def died_s(self) -> float | None:
        """When the victim died: by the kernel's word, else by the outcome of the request that killed it."""
        if self.death is not None:
            return self.death.t
        if self.fault.cause and self.harm is not None and self.harm.end is not None and not self.harm.is_right:
            return self.harm.end.t
        return None

    @property
    def until_s(self) -> float:
        """Until when it may be felt."""
        if not self.fault.cause:
            return self.over_s
        if self.died_s is None:
            return self.over_s if self.fault.is_deadly else math.inf
        return max(self.over_s, math.inf if self.back_s is None else self.back_s)

    def is_felt(self, from_s: float, until_s: float) -> bool:
        """Whether it can have touched something that lasted from then to then."""
        return self.from_s - RACE_S <= until_s and from_s <= self.until_s + RACE_S


@dataclass(slots=True)
class Story:
    """Everything, by kind and in order."""

    began: Began
    requests: dict[int, Request] = field(default_factory=dict[int, Request])
    strangers: list[Outcome] = field(default_factory=list[Outcome])
    """Outcomes of no request."""
    blows: list[Blow] = field(default_factory=list[Blow])
    passed_over: int = 0
    """Faults of the plan that could not be brought about."""
    deaths: list[Death] = field(default_factory=list[Death])
    told: list[Told] = field(default_factory=list[Told])
    editions: list[Edition] = field(default_factory=list[Edition])
    counted: list[Counted] = field(default_factory=list[Counted])
    left: list[Left] = field(default_factory=list[Left])
    restarted: list[Restarted] = field(default_factory=list[Restarted])

    def role(self, model: str) -> Role:
        """What a model is there for."""
        return Role(self.began.models[model])

    def of_model(self, model: str) -> list[Request]:
        """Its requests, oldest first."""
        return [each for each in self.requests.values() if each.invoke.model == model]


def story_of(records: Iterable[Record]) -> Story:
    """The records in order. ValueError if `Began` is not among them."""
    given = list(records)
    began = [each for each in given if isinstance(each, Began)]
    if not began:
        raise ValueError("a history without `began`: the run did not begin")
    story = Story(
        began[0],
        deaths=[each for each in given if isinstance(each, Death)],
        told=[each for each in given if isinstance(each, Told)],
        editions=[each for each in given if isinstance(each, Edition)],
        counted=[each for each in given if isinstance(each, Counted)],
        left=[each for each in given if isinstance(each, Left)],
        restarted=[each for each in given if isinstance(each, Restarted)],
    )
    _pair(story, given)
    _strike(story, given)
    return story


def _pair(story: Story, records: list[Record]) -> None:
    ends: dict[int, list[Outcome]] = {}
    for each in records:
        if isinstance(each, Outcome):
            ends.setdefault(each.id, []).append(each)
    for each in records:
        if isinstance(each, Invoke):
            story.requests[each.id] = Request(each, tuple(ends.pop(each.id, ())))
    story.strangers.extend(outcome for left in ends.values() for outcome in left)


def _strike(story: Story, records: list[Record]) -> None:
    over = {each.number: each for each in records if isinstance(each, Over)}
    injected = [each for each in records if isinstance(each, Injected)]
    done = [each for each in injected if each.done]
    story.passed_over = len(injected) - len(done)
    tries: dict[int, list[Request]] = {}
    beside: dict[int, list[Request]] = {}
    for request in story.requests.values():
        tries.setdefault(request.invoke.strike, []).append(request)
        beside.setdefault(request.invoke.along, []).append(request)
    right = {name: sorted(_answers(story, name)) for name in story.began.models}
    for each in done:
        after = [later.t for later in done if later.victim == each.victim and later.t > each.t]
        done_to = Blow(
            BY_NAME[each.fault], each.victim, each.number, each.t, math.inf,
            tries=tuple(tries.get(each.number, ())), beside=tuple(beside.get(each.number, ())),
        )  # fmt: skip
        story.blows.append(_blow(story, done_to, over.get(each.number), min(after, default=math.inf), right))


def _answers(story: Story, model: str) -> list[tuple[float, int]]:
    """Right answers of a model: when, and of which process."""
    return [(each.end.t, each.end.pid) for each in story.of_model(model) if each.end and each.is_right]


def _blow(
    story: Story, done: Blow, over: Over | None, next_s: float, right: dict[str, list[tuple[float, int]]]
) -> Blow:
    """What followed from a fault. `next_s`: when its victim is hurt next; `right`: the right answers of each model."""
    harm = done.tries[0] if done.tries else None
    bare = replace(done, over_s=over.t if over else math.inf, note=over.note if over else "", harm=harm)
    if not done.fault.cause:
        return bare
    found = (each for each in story.deaths if each.model == done.victim and done.from_s - RACE_S <= each.t < next_s)
    dead = replace(bare, death=next(found, None))
    died_s, gone = dead.died_s, dead.death.pid if dead.death else 0
    if died_s is None:
        return bare
    back = next(((t, pid) for t, pid in right[done.victim] if t > died_s and (not gone or (pid and pid != gone))), None)
    back_s, pid = back if back else (None, 0)
    exits = [each for each in story.told if each.event.get("event") == "worker_exit" and each.event.get("pid") == gone]
    ready = [each for each in story.told if each.event.get("event") == "worker_ready" and each.event.get("pid") == pid]
    return replace(
        dead,
        back_s=back_s,
        load_s=float(ready[0].event.get("load_s") or 0.0) if ready and pid else 0.0,
        pause_s=float(exits[0].event.get("next_delay_s") or 0.0) if exits and gone else 0.0,
        told_s=exits[0].t if exits and gone else None,
    )


def is_control(blow: Blow) -> bool:
    """Whether it was done by loading or unloading."""
    return blow.fault.by == By.CONTROL
