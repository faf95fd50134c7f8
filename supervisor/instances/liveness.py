"""Whether a worker gets on: a pure function of its status page, the gateways' word and the time.

    starting, loading, warming   the load as a whole has its limit
    busy                         one batch may take the model's hang limit
    idle                         the loop comes round at least every 500 ms; a request waiting at an idle loop is stuck
    stopping                     the drain has its own timer

The page is the worker's own word. The second witness is the gateway's oldest pending request. A time that is yet to
come is taken for the one at which it was first seen: else it would put every limit off.
`look_ns` says when the next reading can first matter, so that nobody polls without need.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from mmsup.ipc.memory.status_page import Activity, Progress

HEARTBEAT_S: Final = 0.5
"""At least so often does an idle worker's loop come round."""
MISSED_HEARTBEATS: Final = 2
"""Beats that may be missed beyond the hang limit: a busy machine wakes nobody on time."""
NS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class LivenessLimits:
    """What one life is allowed. Times are monotonic."""

    hang_s: float
    load_s: float
    spawned_ns: int
    """When it was spawned."""


@dataclass(frozen=True, slots=True)
class Alive:
    """It gets on."""


@dataclass(frozen=True, slots=True)
class Slow:
    """Somebody waits, and no limit is passed."""


@dataclass(frozen=True, slots=True)
class Hung:
    """It serves nobody any more."""

    reason: str


@dataclass(frozen=True, slots=True)
class LoadTimeout:
    """It will not come up."""

    reason: str


Liveness = Alive | Slow | Hung | LoadTimeout


class PageTimes:
    """Of one page, as far as they can be believed. Kept from one reading to the next."""

    def __init__(self) -> None:
        self._first_ns: dict[int, int] = {}
        """A time that lay in the future, and when that was seen; as long as the page says it."""

    def corrected(self, progress: Progress, now_ns: int) -> Progress:
        """The reading with times that have been."""
        first = self._first_ns
        said = (progress.since_ns, progress.heartbeat_ns)
        self._first_ns = {each: first.get(each, now_ns) for each in said if each > now_ns or each in first}
        since_ns, beat_ns = (self._first_ns.get(each, each) for each in said)
        return replace(progress, since_ns=since_ns, heartbeat_ns=beat_ns)


def judge(progress: Progress, limits: LivenessLimits, oldest_pending_s: float | None, now_ns: int) -> Liveness:
    """The verdict now. `oldest_pending_s`: age of a request at which a gateway has heard nothing since, if any."""
    match progress.activity:
        case Activity.STARTING | Activity.LOADING | Activity.WARMING:
            return _judge_load(progress, limits, now_ns)
        case Activity.BUSY:
            busy_s = (now_ns - progress.since_ns) / NS
            if busy_s > limits.hang_s:
                return Hung(f"a batch has run for {busy_s:.1f} s; the limit is {limits.hang_s:g} s")
        case Activity.IDLE | Activity.STANDBY:
            return _judge_idle(progress, limits, oldest_pending_s, now_ns)
        case Activity.STOPPING:
            pass
    return Alive() if oldest_pending_s is None else Slow()


def next_check_ns(progress: Progress, limits: LivenessLimits, now_ns: int) -> int:
    """The first time at which `judge` could say something else, if nobody but the worker moves."""
    match progress.activity:
        case Activity.STARTING | Activity.LOADING | Activity.WARMING:
            # It may be through at any moment, and then hang: the serving limit counts from now.
            return min(limits.spawned_ns + round(limits.load_s * NS), now_ns + round(limits.hang_s * NS)) + 1
        case Activity.BUSY:
            return progress.since_ns + round(limits.hang_s * NS) + 1
        case Activity.IDLE | Activity.STANDBY:
            return min(progress.heartbeat_ns + _stale_ns(limits), now_ns + round(limits.hang_s * NS)) + 1
        case Activity.STOPPING:
            return now_ns + round(limits.hang_s * NS)


def _judge_load(progress: Progress, limits: LivenessLimits, now_ns: int) -> Liveness:
    if now_ns - limits.spawned_ns > limits.load_s * NS:
        doing = progress.activity.name.lower()
        return LoadTimeout(f"still {doing} after {limits.load_s:g} s, the load timeout")
    return Alive()


def _judge_idle(progress: Progress, limits: LivenessLimits, oldest_pending_s: float | None, now_ns: int) -> Liveness:
    silent_ns = now_ns - progress.heartbeat_ns
    if silent_ns > _stale_ns(limits):
        return Hung(f"its idle loop has not come round for {silent_ns / NS:.1f} s")
    if oldest_pending_s is None:
        return Alive()
    if oldest_pending_s >= limits.hang_s and now_ns - progress.since_ns >= limits.hang_s * NS:
        return Hung(f"a request has waited {oldest_pending_s:.1f} s at an idle loop; the limit is {limits.hang_s:g} s")
    return Slow()


def _stale_ns(limits: LivenessLimits) -> int:
    return round((limits.hang_s + MISSED_HEARTBEATS * HEARTBEAT_S) * NS)
