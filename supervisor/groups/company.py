"""What models that share a process mean for each other. Pure.

One thread serves them all, so one of them at a time can be at fault: the one that loads, runs or is being unloaded. The
pages of the others say that they wait, and for how long, which is not theirs to answer for.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final, TypeVar

from mmsup.ipc.memory.status_page import RUNNING, Activity, Progress
from mmsup.ipc.specs import GROUP_KEYS, ModelSpec

ACTIVE: Final = frozenset({Activity.LOADING, Activity.WARMING, Activity.STOPPING}) | RUNNING
"""A model in one of these has the process to itself."""

_Member = TypeVar("_Member", bound=Hashable)


def running(pages: Mapping[_Member, Progress]) -> _Member | None:
    """The member that has the process now, or had it when that ended; None between two runs."""
    found = [member for member, page in pages.items() if page.activity in ACTIVE]
    return found[0] if len(found) == 1 else None


def seen_beside(own: Progress, others: Iterable[Progress], now_ns: int) -> Progress:
    """The page of a member as its liveness is judged by: while another one has the process, an idle one is not late."""
    if own.activity is Activity.IDLE and any(each.activity in ACTIVE for each in others):
        return replace(own, since_ns=max(own.since_ns, now_ns), heartbeat_ns=max(own.heartbeat_ns, now_ns))
    return own


def can_share(one: ModelSpec, other: ModelSpec) -> bool:
    """Whether two models of a group can be in one process."""
    return all(getattr(one, name) == getattr(other, name) for name in GROUP_KEYS.values())


def choose(held: Sequence[int], instances: int) -> int | None:
    """Which process of a group takes one more instance of a model, None for a new one. `held`: how many instances of
    the same version each of them has; `instances`: how many processes the group has."""
    if not held or (len(held) < instances and min(held) > 0):
        return None
    return min(range(len(held)), key=held.__getitem__)
