"""Which instances may load now: at most so many at a time. Pure.

First tries go before retries of what has failed: broken models must not keep healthy ones waiting, whatever their
class. Among either, models of a higher class of priority are first.

Instances that have served before have slots of their own, as many: a model that hangs in its first load must not keep
another one, which had served, from coming back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

LoadOrder = tuple[int, bool, int, str]


@dataclass(frozen=True, slots=True)
class LoadCandidate:
    instance: int
    order: int
    """Of its model among all, by `load_order`."""
    has_served: bool
    """An instance of this revision has served before."""
    is_retry: bool = False
    """Its last load failed."""


def load_order(priority: int, awaited: int | None, name: str) -> LoadOrder:
    """The place of a load among others: by class of priority; within one those for which requests wait, as they came,
    then the others by name. `awaited`: rises with each load for which requests wait; None for the others."""
    return priority, awaited is None, awaited or 0, name


def next_loads(
    waiting: Sequence[LoadCandidate],
    loading: Sequence[bool],
    limit: int,
    may_start: Callable[[int], bool] = lambda _: True,
) -> list[int]:
    """The instances that may load now. `loading`: of each load under way, whether it `has_served`. `may_start` is asked
    of the most urgent first, and of no more than there are slots for; one that may not start yet takes no slot."""
    admitted: list[int] = []
    for has_served in (True, False):
        free = limit - sum(each is has_served for each in loading)
        queue = [each for each in waiting if each.has_served is has_served]
        for each in sorted(queue, key=lambda each: (each.is_retry, each.order, each.instance)):
            if free <= 0:
                break
            if may_start(each.instance):
                admitted.append(each.instance)
                free -= 1
    return admitted
