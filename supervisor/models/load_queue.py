"""Which instances may load now: at most so many at a time. Pure.

First tries go before retries of what has failed: broken models must not keep healthy ones waiting, whatever their
class. Among either, models of a higher class of priority are first.

Instances that have served before have slots of their own, as many: a model that hangs in its first load must not keep
another one, which had served, from coming back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

LoadOrder = tuple[int, bool, int, str]
SLOW_S: Final = 10.0
"""After so long a load is slow whose usual time is not known. Imports of torch on a busy machine take half of it; what
takes longer hangs, or waits for a disk."""
SLOW_FACTOR: Final = 3
SLOW_LEAST_S: Final = 2.0
"""The same where it is known: after so many times that, and so long at least, since short ones vary most."""
SLOW_LIMIT: Final = 4
"""Times the usual limit that may be under way in all, slow ones included: each holds the memory of a worker."""


@dataclass(frozen=True, slots=True)
class LoadCandidate:
    instance: int
    order: int
    """Of its model among all, by `load_order`."""
    has_served: bool
    """An instance of this revision has served before."""
    is_retry: bool = False
    """Its last load failed."""


@dataclass(frozen=True, slots=True)
class RunningLoad:
    has_served: bool
    running_s: float
    usual_s: float | None
    """What the last load of its model took; None if there was none."""

    @property
    def is_slow(self) -> bool:
        usual_s = self.usual_s
        return self.running_s > (SLOW_S if usual_s is None else max(SLOW_FACTOR * usual_s, SLOW_LEAST_S))


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


def slots_held(running: Sequence[RunningLoad], awaited: Mapping[bool, int], limit: int) -> list[bool]:
    """Of each slot that is taken whether it is one for loads that have served, as `next_loads` takes it. A load that
    takes much longer than is usual holds none while requests wait for others. `awaited`: how many of these are queued,
    by `has_served`."""
    held: list[bool] = []
    for has_served in (True, False):
        loads = [each for each in running if each.has_served is has_served]
        quick = sum(not each.is_slow for each in loads)
        opened = min(limit - quick, SLOW_LIMIT * limit - len(loads), awaited.get(has_served, 0))
        held += [has_served] * min(len(loads), limit - max(opened, 0))
    return held
