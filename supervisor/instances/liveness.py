"""Whether a worker makes progress: a pure function of its status page, the age of pending requests and the time.

    starting, loading, warming   the load as a whole has its limit
    busy                         one batch may take the model's hang limit
    idle                         the loop iterates at least every 500 ms; a request pending at an idle loop is stuck
    stopping                     the drain has its own timer

The status page is written by the worker, so the age of the gateways' oldest pending request is a second source. A time
in the future counts as the time at which it was first read; otherwise it would postpone every limit. `next_check_ns` is
the earliest time at which a check can have another result, so that nothing polls without need.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from mmsup.ipc.memory.status_page import Activity, Progress

HEARTBEAT_S: Final = 0.5
"""The longest iteration of an idle worker's loop."""
MISSED_HEARTBEATS: Final = 2
"""Tolerated beyond the hang limit, because a busy machine wakes processes late."""
NS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class LivenessLimits:
    """The limits of one worker. Times are monotonic."""

    hang_s: float
    load_s: float
    spawned_ns: int


@dataclass(frozen=True, slots=True)
class Alive:
    """No limit has passed."""


@dataclass(frozen=True, slots=True)
class Hung:
    reason: str


@dataclass(frozen=True, slots=True)
class LoadTimeout:
    reason: str


Liveness = Alive | Hung | LoadTimeout


class PageTimes:
    """Corrects times in the future on one status page; kept from one reading to the next."""

    def __init__(self) -> None:
        self._first_ns: dict[int, int] = {}
        """A time in the future, and when it was first read; while it stands on the page."""

    def corrected(self, progress: Progress, now_ns: int) -> Progress:
        first = self._first_ns
        on_page = (progress.since_ns, progress.heartbeat_ns)
        self._first_ns = {each: first.get(each, now_ns) for each in on_page if each > now_ns or each in first}
        since_ns, beat_ns = (self._first_ns.get(each, each) for each in on_page)
        return replace(progress, since_ns=since_ns, heartbeat_ns=beat_ns)


def judge(progress: Progress, limits: LivenessLimits, oldest_pending_s: float | None, now_ns: int) -> Liveness:
    """The liveness now. `oldest_pending_s`: age of the oldest request of a gateway that has received nothing since."""
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
    return Alive()


def next_check_ns(progress: Progress, limits: LivenessLimits, now_ns: int) -> int:
    """The first time at which `judge` could return something else, unless a gateway reports an overdue request."""
    match progress.activity:
        case Activity.STARTING | Activity.LOADING | Activity.WARMING:
            # The load may end at any moment, and the worker hang then: the serving limit counts from now.
            return min(limits.spawned_ns + round(limits.load_s * NS), now_ns + round(limits.hang_s * NS)) + 1
        case Activity.BUSY:
            return progress.since_ns + round(limits.hang_s * NS) + 1
        case Activity.IDLE | Activity.STANDBY:
            return min(progress.heartbeat_ns + _stale_ns(limits), now_ns + round(limits.hang_s * NS)) + 1
        case Activity.STOPPING:
            return now_ns + round(limits.hang_s * NS)


def _judge_load(progress: Progress, limits: LivenessLimits, now_ns: int) -> Liveness:
    if now_ns - limits.spawned_ns > limits.load_s * NS:
        activity = progress.activity.name.lower()
        return LoadTimeout(f"still {activity} after {limits.load_s:g} s, the load timeout")
    return Alive()


def _judge_idle(progress: Progress, limits: LivenessLimits, oldest_pending_s: float | None, now_ns: int) -> Liveness:
    silent_ns = now_ns - progress.heartbeat_ns
    if silent_ns > _stale_ns(limits):
        return Hung(f"its idle loop has not come round for {silent_ns / NS:.1f} s")
    pending_s = oldest_pending_s or 0.0
    if pending_s >= limits.hang_s and now_ns - progress.since_ns >= limits.hang_s * NS:
        return Hung(f"a request has waited {pending_s:.1f} s at an idle loop; the limit is {limits.hang_s:g} s")
    return Alive()


def _stale_ns(limits: LivenessLimits) -> int:
    return round((limits.hang_s + MISSED_HEARTBEATS * HEARTBEAT_S) * NS)
