"""Whether a worker makes progress: a pure function of its status page, what /proc showed, and the time.

    starting, loading, warming   the load as a whole has its limit, whatever it does
    busy                         no progress for the hang limit (processes/stall_clock.py): hung. With progress a run
                                 goes on to its own limit, the model's `deadline` counted from its start
    busy, first run of a life    the load's limit in the place of both: it compiles, allocates, fetches. Not after a
                                 life whose first run was quick, or hung
    moving                       no progress for the hang limit: hung. In all it has the load's limit (model_moves.py)
    idle                         the loop iterates at least every 500 ms; a request pending at an idle loop is stuck
    calling                      it waits for another model, which is judged in its place; its loop iterates as an idle
                                 one does
    stopping                     the drain has its own timer

The status page is written by the worker, so the age of the gateways' oldest pending request is a second source. A time
in the future counts as the time at which it was first read; otherwise it would postpone every limit. `next_check_ns` is
the earliest time at which a check can have another result, so that nothing polls without need.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from mmsup.ipc.memory.status_page import Activity, Progress
from mmsup.supervisor.processes.stall_clock import LOOKS

HEARTBEAT_S: Final = 0.5
"""The longest iteration of an idle worker's loop."""
MISSED_HEARTBEATS: Final = 2
"""Tolerated beyond the hang limit, because a busy machine wakes processes late."""
NS: Final = 1_000_000_000
_LOADING: Final = frozenset({Activity.STARTING, Activity.LOADING, Activity.WARMING})
_WORKING: Final = frozenset({Activity.BUSY, Activity.MOVING})
_IDLE: Final = frozenset({Activity.IDLE, Activity.STANDBY})
_BEATING: Final = _IDLE | {Activity.CALLING}
"""The loop comes round, whatever else it waits for."""


@dataclass(frozen=True, slots=True)
class LivenessLimits:
    """The limits of one worker. Times are monotonic."""

    hang_s: float
    load_s: float
    spawned_ns: int
    deadline_s: float = 60.0
    is_ready: bool = True
    """It has reported that it is ready; until then the load's limit is the only one."""
    slow_first_run: bool = True
    """Its first run may take as long as a load; see FirstRuns."""

    def stall_s(self, progress: Progress) -> float:
        """How long a run, or an idle loop, may go without progress."""
        return max(self.hang_s, self.load_s) if self.is_slow_run(progress) else self.hang_s

    def is_slow_run(self, progress: Progress) -> bool:
        return self.slow_first_run and is_first_run(progress)

    def run_s(self, progress: Progress) -> float:
        """How long a run may take with progress. An operator may let a run pause for longer than its callers wait."""
        return max(self.stall_s(progress), self.deadline_s)


@dataclass(slots=True)
class FirstRuns:
    """Whether the first run of the next worker of a version may take as long as a load. Once one was quick or has hung,
    it may not: otherwise a deadlock in a first run would hold the model for the load's limit in every life."""

    may_be_slow: bool = True

    def observe(self, progress: Progress, limits: LivenessLimits, now_ns: int) -> bool:
        """Of a worker that was never seen in a long first run; whether it is in one now."""
        if is_first_run(progress):
            return now_ns - progress.since_ns > limits.hang_s / 2 * NS
        if limits.is_ready and progress.batches:
            self.may_be_slow = False
        return False


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


def suspected_since_ns(progress: Progress, limits: LivenessLimits, now_ns: int) -> int | None:
    """The start of the run, or of the silence of an idle loop, that has to be looked at; None if there is none."""
    if _is_loading(progress, limits):
        return None
    if progress.activity in _WORKING:
        return progress.since_ns
    is_silent = now_ns - progress.heartbeat_ns > MISSED_HEARTBEATS * min(HEARTBEAT_S, limits.hang_s / 4) * NS
    return progress.heartbeat_ns if progress.activity in _BEATING and is_silent else None


def judge(
    progress: Progress, limits: LivenessLimits, oldest_pending_s: float | None, now_ns: int, stalled_s: float
) -> Liveness:
    """The liveness now. `oldest_pending_s`: age of the oldest request of a gateway that has received nothing since.
    `stalled_s`: how long the suspected run or silence has been without progress."""
    if _is_loading(progress, limits):
        return _judge_load(progress, limits, now_ns)
    if progress.activity is Activity.BUSY:
        return _judge_run(progress, limits, now_ns, stalled_s)
    if progress.activity is Activity.MOVING:
        return _judge_move(limits, stalled_s)
    if progress.activity is Activity.CALLING:
        return _judge_idle(progress, limits, None, now_ns, stalled_s, "it waited for another model")
    if progress.activity in _IDLE:
        return _judge_idle(progress, limits, oldest_pending_s, now_ns, stalled_s)
    return Alive()


def next_check_ns(progress: Progress, limits: LivenessLimits, now_ns: int, next_look_ns: int) -> int:
    """The first time at which `judge` could return something else, unless a gateway reports an overdue request.
    `next_look_ns`: when what is suspected has to be looked at again."""
    if _is_loading(progress, limits):
        # A worker that has reported that it is ready begins its first run at any moment, which is looked at then.
        interval_s = limits.hang_s / LOOKS if limits.is_ready else limits.hang_s
        return min(limits.spawned_ns + round(limits.load_s * NS), now_ns + round(interval_s * NS)) + 1
    if progress.activity is Activity.MOVING:
        return max(next_look_ns, now_ns + 1)
    if suspected_since_ns(progress, limits, now_ns) is not None:
        if limits.is_slow_run(progress):  # it may end at any moment, and the run after it has the hang limit
            next_look_ns = min(next_look_ns, now_ns + round(limits.hang_s / LOOKS * NS) + 1)
        return min(next_look_ns, max(progress.since_ns + round(limits.run_s(progress) * NS), now_ns) + 1)
    interval_ns = round(limits.hang_s * NS)
    return now_ns + (interval_ns if progress.activity is Activity.STOPPING else interval_ns // LOOKS) + 1


def _is_loading(progress: Progress, limits: LivenessLimits) -> bool:
    return progress.activity in _LOADING or not limits.is_ready


def is_first_run(progress: Progress) -> bool:
    return progress.activity is Activity.BUSY and not progress.batches


def _judge_load(progress: Progress, limits: LivenessLimits, now_ns: int) -> Liveness:
    if now_ns - limits.spawned_ns > limits.load_s * NS:
        activity = progress.activity.name.lower() if progress.activity in _LOADING else "warming"
        return LoadTimeout(f"still {activity} after {limits.load_s:g} s, the load timeout")
    return Alive()


def _judge_run(progress: Progress, limits: LivenessLimits, now_ns: int, stalled_s: float) -> Liveness:
    run_s, is_slow = (now_ns - progress.since_ns) / NS, limits.is_slow_run(progress)
    first = "the first run of this worker" if is_first_run(progress) else "a run"
    if stalled_s >= limits.stall_s(progress):
        key = "load_timeout" if is_slow else "hang_limit"
        return Hung(f"{first} has made no progress for {stalled_s:.1f} s; {_may_pause(key)}")
    if run_s > limits.run_s(progress):
        key = "load_timeout` and `deadline" if is_slow else "deadline"
        return Hung(f"{first} has not ended after {run_s:.1f} s; if it may take so long, {_raise(key)}")
    return Alive()


def _judge_move(limits: LivenessLimits, stalled_s: float) -> Liveness:
    if stalled_s < limits.hang_s:
        return Alive()
    return Hung(f"its model has made no progress in a move for {stalled_s:.1f} s; {_may_pause('hang_limit')}")


def _may_pause(key: str) -> str:
    return f"if it may pause for so long, {_raise(key)}"


def _raise(key: str) -> str:
    return f"set a longer `{key}` for its model"


def _judge_idle(
    progress: Progress,
    limits: LivenessLimits,
    oldest_pending_s: float | None,
    now_ns: int,
    stalled_s: float,
    doing: str = "it ran nothing",
) -> Liveness:
    silent_ns = now_ns - progress.heartbeat_ns
    if silent_ns > _stale_ns(limits):
        if stalled_s >= limits.hang_s or silent_ns > limits.run_s(progress) * NS:
            return Hung(f"{doing}, and its loop has not come round for {silent_ns / NS:.1f} s")
        return Alive()
    pending_s = oldest_pending_s or 0.0
    is_silent = suspected_since_ns(progress, limits, now_ns) is not None
    if not is_silent and pending_s >= limits.hang_s and now_ns - progress.since_ns >= limits.hang_s * NS:
        return Hung(f"a request has waited {pending_s:.1f} s while nothing ran; the limit is {limits.hang_s:g} s")
    return Alive()


def _stale_ns(limits: LivenessLimits) -> int:
    return round((limits.hang_s + MISSED_HEARTBEATS * HEARTBEAT_S) * NS)
