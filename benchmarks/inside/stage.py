"""What a stage is, what the plan said it would take, and how the two are held against each other. Pure.

A stage is measured, or made up of others: the sum of some without others. What has a plan and takes more than ALLOWED
times that, by this machine's own pace, is explained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from table import figure, table

from inside.best import MANY, ROUNDS_PER_STAGE, Times

ALLOWED = 1.5
NONE = "-"
HEADS = ("stage", *(f"{turn} a turn, µs" for turn in ROUNDS_PER_STAGE), "plan, µs", "plan on this machine, µs", "why")


@dataclass(frozen=True)
class Stage:
    """One line of the table."""

    name: str
    key: str = ""
    """By which it was measured."""
    plus: tuple[str, ...] = ()
    minus: tuple[str, ...] = ()
    plan_us: tuple[float, ...] = ()
    """One figure or the least and the most, at 32 connections; none where the prototype had no such stage."""
    why: str = ""
    """If there is a plan: why it takes longer, where it does. Else: what it is that the prototype did not have."""

    def us(self, times: Times, turn: int) -> float | None:
        """What it takes; None if any part of it is not known for such turns."""
        plus = [times.get((key, turn)) for key in (self.key, *self.plus) if key]
        minus = [times.get((key, turn)) for key in self.minus]
        known = [each for each in (*plus, *minus) if each is not None]
        if len(known) < len(plus) + len(minus):
            return None
        return sum(known[: len(plus)]) - sum(known[len(plus) :])

    def ratio(self, times: Times, factor: float) -> float | None:
        """How many times the plan it takes, on a machine that takes `factor` times as long; None if it has no plan."""
        many = self.us(times, MANY)
        return many / (self.plan_us[-1] * factor) if many is not None and self.plan_us else None


def lines(stages: Sequence[Stage], times: Times, factor: float) -> list[list[str]]:
    """The table's cells; stages of which nothing is known are left out."""
    return [_line(each, times, factor) for each in stages if any(each.us(times, turn) for turn in ROUNDS_PER_STAGE)]


def _line(stage: Stage, times: Times, factor: float) -> list[str]:
    found = [stage.us(times, turn) for turn in ROUNDS_PER_STAGE]
    cells = [NONE if each is None else figure(each) for each in found]
    return [
        stage.name,
        *cells,
        _planned(stage.plan_us, 1),
        _planned(stage.plan_us, factor),
        _explanation(stage, times, factor),
    ]


def _planned(plan_us: tuple[float, ...], factor: float) -> str:
    return "-".join(figure(each * factor) for each in plan_us) or NONE


def _explanation(stage: Stage, times: Times, factor: float) -> str:
    ratio = stage.ratio(times, factor)
    if ratio is None:
        return stage.why
    return f"{ratio:.1f} times: {stage.why or '**not explained**'}" if ratio > ALLOWED else ""


def markdown(stages: Sequence[Stage], times: Times, factor: float) -> str:
    """The table."""
    return table(HEADS, lines(stages, times, factor))
