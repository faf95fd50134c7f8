"""Which instances may load now: at most so many at a time. Pure.

First tries go before retries of what has failed: broken models must not keep healthy ones waiting, whatever their
class. Among either, models of a higher class of priority are first.

Instances that have served before have slots of their own, as many: a model that hangs in its first load must not keep
another one, which had served, from coming back. Those of them whose last load was quick have others still, and more:
such a load waits for the kernel and for other processes most of its time, so that a few of them do not keep the
processors busy, and it must not wait behind one that takes seconds.
"""

from __future__ import annotations

import enum
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
QUICK_S: Final = 0.5
"""A fork of a zygote and weights of some megabytes take a tenth of that, and a third on a busy machine."""
QUICK_FACTOR: Final = 2
"""Times the usual limit that quick loads may be under way."""


class LoadKind(enum.Enum):
    FIRST = enum.auto()
    SERVED = enum.auto()
    """An instance of this revision has served before."""
    QUICK = enum.auto()
    """The same, and its last load took less than QUICK_S."""

    def slots(self, limit: int) -> int:
        return QUICK_FACTOR * limit if self is LoadKind.QUICK else limit


def load_kind(usual_s: float | None, *, has_served: bool) -> LoadKind:
    """`usual_s`: what the last load of its model took; None if that is not known."""
    if not has_served:
        return LoadKind.FIRST
    return LoadKind.QUICK if usual_s is not None and usual_s < QUICK_S else LoadKind.SERVED


@dataclass(frozen=True, slots=True)
class LoadCandidate:
    instance: int
    order: int
    """Of its model among all, by `load_order`."""
    kind: LoadKind
    is_retry: bool = False
    """Its last load failed."""


@dataclass(frozen=True, slots=True)
class RunningLoad:
    kind: LoadKind
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
    loading: Sequence[LoadKind],
    limit: int,
    may_start: Callable[[int], bool] = lambda _: True,
) -> list[int]:
    """The instances that may load now. `loading`: the kind of each load under way. `may_start` is asked of the most
    urgent first, and of no more than there are slots for; one that may not start yet takes no slot."""
    free = {kind: kind.slots(limit) - sum(each is kind for each in loading) for kind in LoadKind}
    admitted: list[int] = []
    for each in sorted(
        waiting, key=lambda each: (each.kind is LoadKind.FIRST, each.is_retry, each.order, each.instance)
    ):
        if free[each.kind] > 0 and may_start(each.instance):
            admitted.append(each.instance)
            free[each.kind] -= 1
    return admitted


def _urgency(load: LoadCandidate) -> tuple[bool, bool, int, int]:
    return load.kind is LoadKind.FIRST, load.is_retry, load.order, load.instance


def slots_held(running: Sequence[RunningLoad], awaited: Mapping[LoadKind, int], limit: int) -> list[LoadKind]:
    """The kind of each slot that is taken, as `next_loads` takes it. A load that takes much longer than is usual holds
    none while requests wait for others. `awaited`: how many of these are queued, by kind."""
    held: list[LoadKind] = []
    for kind in LoadKind:
        loads, slots = [each for each in running if each.kind is kind], kind.slots(limit)
        quick = sum(not each.is_slow for each in loads)
        opened = min(slots - quick, SLOW_LIMIT * slots - len(loads), awaited.get(kind, 0))
        held += [kind] * min(len(loads), slots - max(opened, 0))
    return held
