"""Where the time of a cold start goes, told by the events of the server and the replies that a client has got. Pure.

client → controller   from when the request was due until the controller has the wish to load its model
room                  until the last model that goes for it has ended; 0 if none had to
slot                  until its process is asked for: places of parallel loads, memory that others take first
start and load        until its worker is ready
answer                until the client has its reply: routes and links told to gateways, the request itself
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from statistics import mean
from typing import Any

from density_client import Reply
from table import figure, table

Event = Mapping[str, Any]  # JSON
STAGES = ("client → controller", "room", "slot", "start and load", "answer")
SLOWEST = 0.05


@dataclass(slots=True)
class ColdStart:
    """One load that a request asked for; times by the wall clock."""

    model: str
    waking_s: float
    victims_gone_s: float = 0.0
    """When the last model had ended that went for it; 0: none did."""
    spawn_s: float = 0.0
    ready_s: float = 0.0
    is_forked: bool = False
    due_s: float = 0.0
    answered_s: float = 0.0
    drains_s: list[float] = field(default_factory=list[float])
    """Of each victim, from the choice to its end."""

    @property
    def is_complete(self) -> bool:
        return self.due_s > 0 and self.waking_s <= self.spawn_s <= self.ready_s and self.answered_s > 0

    @property
    def took_s(self) -> float:
        return self.answered_s - self.due_s

    def stages_s(self) -> tuple[float, ...]:
        """As STAGES names them."""
        has_room_s = min(max(self.victims_gone_s, self.waking_s), self.spawn_s)
        ends = (self.due_s, self.waking_s, has_room_s, self.spawn_s, self.ready_s, self.answered_s)
        return tuple(later - earlier for earlier, later in pairwise(ends))


def time_s(event: Event) -> float:
    return datetime.fromisoformat(event["time"]).timestamp()


class EventReader:
    """Follows the events of a server, oldest first, and puts loads together of them."""

    def __init__(self) -> None:
        self.starts: list[ColdStart] = []
        self._open: dict[str, ColdStart] = {}
        """By model, until it is put to sleep."""
        self._leaving: dict[str, tuple[str, float]] = {}
        """Of each model that goes: for which one, and since when."""
        self.counts = Counter[str]()
        """Of each event, how often it was."""

    def read(self, event: Event) -> None:
        name, model, at_s = event["event"], event["model"], time_s(event)
        start = self._open.get(model)
        self.counts[name] += 1
        if name == "model_waking":
            self._open[model] = ColdStart(model, at_s)
            self.starts.append(self._open[model])
        elif name == "model_asleep":
            self._open.pop(model, None)
            self._leaving[model] = event.get("for_model", ""), at_s
        elif name == "worker_stopped" and model in self._leaving:
            self._on_gone(*self._leaving.pop(model), at_s)
        elif name == "worker_spawn" and start is not None:
            start.spawn_s = at_s
        elif name == "worker_ready" and start is not None:
            start.ready_s, start.is_forked = at_s, str(event.get("start", "")).startswith("forked")

    def _on_gone(self, for_model: str, since_s: float, at_s: float) -> None:
        start = self._open.get(for_model)
        if start is not None and not start.spawn_s:
            start.victims_gone_s = at_s
        if start is not None:
            start.drains_s.append(at_s - since_s)


def with_replies(starts: Iterable[ColdStart], replies: Iterable[Reply], names: Sequence[str], ahead_s: float) -> None:
    """Note the first cold reply of each load. `ahead_s`: of the wall clock before the monotonic one."""
    by_model: dict[str, list[ColdStart]] = {}
    for each in starts:
        by_model.setdefault(each.model, []).append(each)
    for reply in sorted(replies, key=lambda each: each.due_s):
        if not reply.is_cold or reply.status != 200:
            continue
        due_s = reply.due_s + ahead_s
        for start in by_model.get(names[reply.model], ()):
            if not start.due_s and due_s <= start.waking_s + 0.002 <= due_s + reply.took_s + 0.004:
                start.due_s, start.answered_s = min(due_s, start.waking_s), due_s + reply.took_s
                break


def stage_table(starts: Iterable[ColdStart]) -> str:
    """Milliseconds: of all loads by quantiles, and the mean of the slowest ones, in which the stages add up."""
    found = sorted((each for each in starts if each.is_complete), key=lambda each: each.took_s)
    if not found:
        return "no cold start was seen from its request to its reply"
    slowest = found[-max(round(len(found) * SLOWEST), 1) :]
    rows = [each.stages_s() for each in found]
    worst = [each.stages_s() for each in slowest]
    lines = [_line(name, [row[at] for row in rows], [row[at] for row in worst]) for at, name in enumerate(STAGES)]
    lines.append(_line("all", [each.took_s for each in found], [each.took_s for each in slowest]))
    drains = [drain_s for each in found for drain_s in each.drains_s]
    if drains:
        lines.append(_line("(the end of one victim)", drains, [s for each in slowest for s in each.drains_s]))
    forked = sum(each.is_forked for each in found)
    text = f"{len(found)} cold starts, {forked} of them forked"
    heads = ["stage, ms", "p50", "p90", "p99", "mean", f"mean of the slowest {SLOWEST:.0%}"]
    return f"{text}:\n\n{table(heads, lines)}"


def _line(name: str, values: Sequence[float], worst: Sequence[float]) -> list[str]:
    ordered = sorted(values)
    quantiles = [ordered[min(int(len(ordered) * share), len(ordered) - 1)] for share in (0.5, 0.9, 0.99)]
    return [name, *(figure(each * 1e3) for each in (*quantiles, mean(values), mean(worst) if worst else 0.0))]
