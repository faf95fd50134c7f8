"""Whose turn it is to load. Pure.

At most so many loads at a time, models of a higher class of priority first. Instances that come back after a death have
turns of their own, as many: a model that hangs in its first load must not keep another one, which had served, from
coming back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LoadCandidate:
    """One that waits for its turn."""

    instance: int
    order: int
    """Of its model among all: by class of priority, then by name."""
    has_served: bool
    """This content of it has served before."""


def next_loads(waiting: Sequence[LoadCandidate], loading: Sequence[bool], limit: int) -> list[int]:
    """The instances whose turn has come. `loading`: for each load that runs, whether it is one `again`."""
    admitted: list[int] = []
    for again in (True, False):
        free = limit - sum(each is again for each in loading)
        queue = sorted(
            (each for each in waiting if each.has_served is again), key=lambda each: (each.order, each.instance)
        )
        admitted += [each.instance for each in queue[: max(free, 0)]]
    return admitted
