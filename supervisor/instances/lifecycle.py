"""The state machine of one instance: its states, and what each event does in each of them. Pure.

Two facts make a situation: `wanted` is set by people (load, unload, reload, shutdown), `state` by what happens. The
shell (instance.py) turns messages, exits and timers into events, calls `step`, and performs the actions in order. Times
and restart counts are no states: an event that reports an exit brings the decision of restart_policy.py along.

    absent       no process. Wanted: it waits for its turn to load
    starting     the process is being started, or has not reported yet
    loading      imports, artifact                         warming   first runs
    ready        it serves
    offloading   no new requests; it finishes those it has, then moves its model out of the memory that it serves from
    offloaded    its process waits with the model elsewhere; wanted: it waits for its turn to be restored
    restoring    it moves its model back
    draining     no new requests; it finishes those it has
    stopping     condemned, or exiting by itself; the exit is awaited
    quarantined  unkillable: SIGKILL has not ended it. Nothing waits for it; another instance takes its slot where
                 memory allows both. Its exit, should it come, is handled as any other
    backoff      dead; waits for the next try              failed    given up; waits for the next probe
    stopped      ended on purpose; the instance is finished

Precedence: (1) a stopping process is never revived, a new one follows its exit; (2) an exit overrides all earlier
reports; (3) what is received from a dead process changes nothing.
Every cell of the table is written. A missing one is a bug and raises.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

from mmsup.supervisor.instances.lifecycle_events import (
    Action,
    AnnounceOffloaded,
    AnnounceReady,
    AnnounceRestored,
    BecameReady,
    CancelRetry,
    Condemn,
    CrashReported,
    Event,
    ExitOverdue,
    ExpectExit,
    Finish,
    GpuMemoryExceeded,
    HangDetected,
    InstanceState,
    Kill,
    LoadAdmitted,
    LoadProgressed,
    LoadReportedFailed,
    LoadTimedOut,
    Offloaded,
    OutOfMemory,
    ProcessExited,
    ProcessStarted,
    ProtocolViolated,
    QueueLoad,
    RecordGivenUp,
    RecordLoadFailure,
    RecordMoveFailure,
    RecordUnkillable,
    Restored,
    RestoreRefused,
    RetryDue,
    ScheduleRetry,
    Situation,
    StartDrain,
    StartFailed,
    StartOffload,
    StartProcess,
    StartRestore,
    StopRouting,
    Unkillable,
    WantDown,
    WantOffloaded,
    WantUp,
)
from mmsup.supervisor.instances.restart_policy import PROBE_AFTER_S, GiveUp, Retry

Step = tuple[Situation, list[Action]]
Handler = Callable[[Situation, Any], Step]  # the second argument is the event of that cell


class InvalidTransition(AssertionError):  # noqa: N818 - the name that the design gives it
    """The table has no such cell: a bug."""


def step(situation: Situation, event: Event, name: str = "?", history: Sequence[str] = ()) -> Step:
    """The situation after an event, and the actions to perform, in this order."""
    handler = TABLE.get((situation.state, type(event)))
    if handler is None:
        before = "; ".join(history) or "none"
        raise InvalidTransition(f"instance {name}: {type(event).__name__} in {situation.state}; before: {before}")
    return handler(situation, event)


# Handlers.


def _ignore(situation: Situation, _event: Event) -> Step:
    return situation, []


def _want_up(situation: Situation, _event: WantUp) -> Step:
    return replace(situation, wanted=True), []


def _want_down(situation: Situation, _event: WantDown) -> Step:
    return replace(situation, wanted=False), []


def _queue_load(situation: Situation, _event: WantUp | RetryDue) -> Step:
    if situation.wanted and situation.state is InstanceState.ABSENT:
        return situation, []
    return Situation(wanted=True, state=InstanceState.ABSENT), [QueueLoad()]


def _finish_now(_situation: Situation, _event: Event) -> Step:
    return Situation(wanted=False, state=InstanceState.STOPPED), [Finish()]


def _cancel(_situation: Situation, _event: WantDown) -> Step:
    return Situation(wanted=False, state=InstanceState.STOPPED), [CancelRetry(), Finish()]


def _start(situation: Situation, _event: LoadAdmitted) -> Step:
    if not situation.wanted:
        return situation, []
    return replace(situation, state=InstanceState.STARTING), [StartProcess()]


def _progress(situation: Situation, event: LoadProgressed) -> Step:
    return replace(situation, state=InstanceState.WARMING if event.is_warm_up else InstanceState.LOADING), []


def _serve(situation: Situation, _event: BecameReady) -> Step:
    return replace(situation, state=InstanceState.READY), [AnnounceReady()]


def _await_failed_exit(situation: Situation, event: LoadReportedFailed) -> Step:
    failed = RecordLoadFailure(event.code, event.text, event.detail)
    return replace(situation, state=InstanceState.STOPPING), [failed, ExpectExit()]


def _await_crash_exit(situation: Situation, _event: CrashReported) -> Step:
    return replace(situation, state=InstanceState.STOPPING), [ExpectExit()]


def _condemn_crash(situation: Situation, event: CrashReported) -> Step:
    # No kill: it would replace the true signal and cut off the output of faulthandler.
    return replace(situation, state=InstanceState.STOPPING), [Condemn(event.code, event.text), ExpectExit()]


def _kill_unwanted(_situation: Situation, _event: WantDown) -> Step:
    return Situation(wanted=False, state=InstanceState.STOPPING), [Kill()]


def _kill(situation: Situation, _event: Event) -> Step:
    return situation, [Kill()]


def _kill_for(situation: Situation, reason: Action) -> Step:
    return replace(situation, state=InstanceState.STOPPING), [reason, Kill()]


def _fail_load(code: str, *, is_death: bool = False) -> Handler:
    """It loads, and is killed for what the event says."""
    return lambda situation, event: _kill_for(situation, RecordLoadFailure(code, event.text, is_death=is_death))


def _condemn(code: str) -> Handler:
    """It serves, and is killed for what the event says."""
    return lambda situation, event: _kill_for(situation, Condemn(code, event.text))


def _condemn_slow_drain(situation: Situation, _event: ExitOverdue) -> Step:
    return _kill_for(situation, Condemn("worker_hung", "it did not finish in the time given to drain"))


def _mark_unkillable(situation: Situation, _event: Unkillable) -> Step:
    # Killed again: why the first signal did not end it is unknown.
    return replace(situation, state=InstanceState.QUARANTINED), [RecordUnkillable(), Kill()]


def _drain(_situation: Situation, _event: WantDown) -> Step:
    return Situation(wanted=False, state=InstanceState.DRAINING), [StopRouting(), StartDrain()]


def _offload(_situation: Situation, _event: WantOffloaded) -> Step:
    return Situation(wanted=False, state=InstanceState.OFFLOADING), [StopRouting(), StartOffload()]


def _rest(situation: Situation, event: Offloaded) -> Step:
    queued: list[Action] = [QueueLoad()] if situation.wanted else []  # somebody has asked for it meanwhile
    announced = AnnounceOffloaded(event.took_s, event.freed_bytes)
    return replace(situation, state=InstanceState.OFFLOADED), [announced, *queued]


def _queue_restore(situation: Situation, _event: WantUp) -> Step:
    return replace(situation, wanted=True), [] if situation.wanted else [QueueLoad()]


def _restore(situation: Situation, _event: LoadAdmitted) -> Step:
    if not situation.wanted:
        return situation, []
    return replace(situation, state=InstanceState.RESTORING), [StartRestore()]


def _serve_again(situation: Situation, event: Restored) -> Step:
    return replace(situation, state=InstanceState.READY), [AnnounceRestored(event.took_s)]


def _load_instead(situation: Situation, _event: RestoreRefused) -> Step:
    """It ends, and what is wanted is loaded like any other: waits for memory, has room made, or is refused."""
    return replace(situation, state=InstanceState.DRAINING), [StartDrain()]


def _in_move(then: Handler, text: str = "") -> Handler:
    """What `then` does, with the reason noted for the move in which it happened. `text`: where the event has none."""

    def handler(situation: Situation, event: Any) -> Step:
        after, actions = then(situation, event)
        is_restore, why = situation.state is InstanceState.RESTORING, getattr(event, "text", text)
        return after, [RecordMoveFailure(is_restore, why, getattr(event, "detail", "")), *actions]

    return handler


def _condemn_slow_move(situation: Situation, _event: ExitOverdue) -> Step:
    return _kill_for(situation, Condemn("worker_hung", "its model was not moved in the time given to a load"))


def _ended(situation: Situation, event: ProcessExited | StartFailed) -> Step:
    if not situation.wanted:
        return _finish_now(situation, event)
    match event.next:
        case Retry(after_s):
            return replace(situation, state=InstanceState.BACKOFF), [ScheduleRetry(after_s, probe=False)]
        case GiveUp(code, reason, is_probed):
            actions: list[Action] = [RecordGivenUp(code, reason)]
            actions += [ScheduleRetry(PROBE_AFTER_S, probe=True)] if is_probed else []
            return replace(situation, state=InstanceState.FAILED), actions


def _drained(situation: Situation, event: ProcessExited) -> Step:
    """A requested exit is no failure: if the instance is wanted again, it loads again at once."""
    if not situation.wanted:
        return _finish_now(situation, event)
    return Situation(wanted=True, state=InstanceState.ABSENT), [QueueLoad()]


_NO_MOVE: Final[dict[type[Any], Handler]] = {Offloaded: _ignore, Restored: _ignore, RestoreRefused: _ignore}
_STARTING_UP: Final[dict[type[Any], Handler]] = {
    WantUp: _want_up,
    WantDown: _kill_unwanted,
    WantOffloaded: _kill_unwanted,
    LoadAdmitted: _ignore,
    ProcessStarted: _ignore,
    StartFailed: _ended,
    LoadProgressed: _progress,
    BecameReady: _serve,
    LoadReportedFailed: _await_failed_exit,
    **_NO_MOVE,
    CrashReported: _await_crash_exit,
    ProcessExited: _ended,
    HangDetected: _ignore,
    LoadTimedOut: _fail_load("load_timeout"),
    ProtocolViolated: _fail_load("load_failed"),
    OutOfMemory: _fail_load("does_not_fit", is_death=True),
    GpuMemoryExceeded: _fail_load("does_not_fit"),
    ExitOverdue: _ignore,
    Unkillable: _ignore,
    RetryDue: _ignore,
}
_READY: Final[dict[type[Any], Handler]] = {
    **_STARTING_UP,
    WantDown: _drain,
    WantOffloaded: _offload,
    StartFailed: _ignore,
    LoadProgressed: _ignore,
    BecameReady: _ignore,
    LoadReportedFailed: _condemn("bad_worker_reply"),
    CrashReported: _condemn_crash,
    HangDetected: _condemn("worker_hung"),
    LoadTimedOut: _ignore,
    ProtocolViolated: _condemn("bad_worker_reply"),
    # Killed also if it lives: the kernel kills the largest process, and a worker without its child cannot work.
    OutOfMemory: _condemn("worker_oom"),
    GpuMemoryExceeded: _condemn("gpu_oom"),
}
_MOVING: Final[dict[type[Any], Handler]] = {
    **_READY,
    WantDown: _kill_unwanted,
    WantOffloaded: _kill_unwanted,
    LoadReportedFailed: _in_move(_await_crash_exit),
    CrashReported: _in_move(_condemn_crash),
    ProcessExited: _in_move(_ended, "its process ended"),
    HangDetected: _in_move(_condemn("worker_hung")),
    ProtocolViolated: _in_move(_condemn("bad_worker_reply")),
    OutOfMemory: _in_move(_condemn("worker_oom")),
    GpuMemoryExceeded: _in_move(_condemn("gpu_oom")),
    ExitOverdue: _in_move(_condemn_slow_move, "it was not over in the time given to a load"),
}
"""It moves its model to another memory or back."""
_WAITING: Final[dict[type[Any], Handler]] = {
    WantUp: _want_up,
    WantDown: _cancel,
    WantOffloaded: _cancel,
    LoadAdmitted: _ignore,
    ProcessStarted: _ignore,
    StartFailed: _ignore,
    LoadProgressed: _ignore,
    BecameReady: _ignore,
    LoadReportedFailed: _ignore,
    **_NO_MOVE,
    CrashReported: _ignore,
    ProcessExited: _ignore,
    HangDetected: _ignore,
    LoadTimedOut: _ignore,
    ProtocolViolated: _ignore,
    OutOfMemory: _ignore,
    GpuMemoryExceeded: _ignore,
    ExitOverdue: _ignore,
    Unkillable: _ignore,
    RetryDue: _queue_load,
}
_STOPPING: Final[dict[type[Any], Handler]] = {
    **_WAITING,
    WantDown: _want_down,
    WantOffloaded: _want_down,
    ProcessStarted: _kill,  # it was to be stopped before the keeper had started it
    StartFailed: _ended,
    ProcessExited: _ended,
    OutOfMemory: _kill,
    GpuMemoryExceeded: _kill,
    ExitOverdue: _kill,
    Unkillable: _mark_unkillable,
    RetryDue: _ignore,
}
_ROWS: Final[dict[InstanceState, dict[type[Any], Handler]]] = {
    InstanceState.ABSENT: {
        **_WAITING,
        WantUp: _queue_load,
        WantDown: _finish_now,
        WantOffloaded: _finish_now,
        LoadAdmitted: _start,
        RetryDue: _ignore,
    },
    InstanceState.STARTING: _STARTING_UP,
    InstanceState.LOADING: _STARTING_UP,
    InstanceState.WARMING: _STARTING_UP,
    InstanceState.READY: _READY,
    InstanceState.OFFLOADING: {
        **_MOVING,
        WantDown: _drain,
        WantOffloaded: _want_down,
        Offloaded: _rest,
    },
    InstanceState.OFFLOADED: {
        **_READY,
        WantUp: _queue_restore,
        WantDown: _drain,
        WantOffloaded: _drain,
        LoadAdmitted: _restore,
    },
    InstanceState.RESTORING: {
        **_MOVING,
        Restored: _serve_again,
        RestoreRefused: _load_instead,
    },
    InstanceState.DRAINING: {
        **_WAITING,  # an exiting worker closes its channel before the kernel reports the exit: no violation
        WantDown: _want_down,
        WantOffloaded: _want_down,
        LoadReportedFailed: _condemn("bad_worker_reply"),
        CrashReported: _condemn_crash,
        ProcessExited: _drained,
        HangDetected: _condemn("worker_hung"),
        OutOfMemory: _condemn("worker_oom"),
        GpuMemoryExceeded: _condemn("gpu_oom"),
        ExitOverdue: _condemn_slow_drain,
        RetryDue: _ignore,
    },
    InstanceState.STOPPING: _STOPPING,
    InstanceState.QUARANTINED: {**_STOPPING, Unkillable: _kill},
    InstanceState.BACKOFF: _WAITING,
    InstanceState.FAILED: _WAITING,
    InstanceState.STOPPED: {
        **_WAITING,
        WantUp: _queue_load,
        WantDown: _want_down,
        WantOffloaded: _want_down,
        RetryDue: _ignore,
    },
}
TABLE: Final[dict[tuple[InstanceState, type[Any]], Handler]] = {
    (state, event): handler for state, row in _ROWS.items() for event, handler in row.items()
}
