"""Which instances may load now: at most so many at a time. Pure.

First tries go before retries of what has failed: broken models must not keep healthy ones waiting, whatever their
class. Among either, models of a higher class of priority are first.

Instances that have served before have slots of their own, as many: a model that hangs in its first load must not keep
another one, which had served, from coming back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LoadCandidate:
    instance: int
    order: int
    """Of its model among all: by class of priority, then by name."""
    has_served: bool
    """An instance of this revision has served before."""
    is_retry: bool = False
    """Its last load failed."""


def next_loads(waiting: Sequence[LoadCandidate], loading: Sequence[bool], limit: int) -> list[int]:
    """The instances that may load now. `loading`: of each load under way, whether it `has_served`."""
    admitted: list[int] = []
    for has_served in (True, False):
        free = limit - sum(each is has_served for each in loading)
        queue = [each for each in waiting if each.has_served is has_served]
        queue.sort(key=lambda each: (each.is_retry, each.order, each.instance))
        admitted += [each.instance for each in queue[: max(free, 0)]]
    return admitted
