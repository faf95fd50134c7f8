"""The life of one instance: which states there are, and what each event does in each of them. Pure.

There is one machine per instance. Two facts make its situation: `wanted` comes from people (load, unload, swap,
stop), `state` from the world. The shell (instance.py) turns messages, deaths and timers into events, calls `step`, and
carries the actions out in their order. Time and restart counts are not states: whoever reports an end brings the
decision of restart.py along.

    absent      no process. Wanted: it waits for its turn among the loads
    starting    being spawned, or spawned and not yet heard of
    loading     imports, artefact                        warming   its first runs
    ready       it serves
    draining    routed to no more, finishes what it has
    stopping    condemned, or leaving by itself; the exit is awaited
    quarantined killed, and still there: the kernel holds it. Nothing waits for it; the fleet gives its place to
                another one where memory allows both, and its exit, should it come, is taken in as any other
    backoff     dead; the next try has its time          failed    given up; the next probe has its time
    stopped     ended on purpose; the instance is finished

If two rules apply: a process that is to end is never called back (a new one follows its exit), an exit is final
whatever was said before it, and what a dead process still seems to say changes nothing.
Every cell of the table is written. A missing one is a bug and raises.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

from mmsup.supervisor.instances.lifecycle_events import (
    Action,
    AnnounceReady,
    BecameReady,
    CancelRetry,
    Condemn,
    CrashReported,
    Event,
    ExitOverdue,
    ExpectExit,
    Finish,
    HangDetected,
    InstanceState,
    Kill,
    LoadAdmitted,
    LoadProgressed,
    LoadReportedFailed,
    LoadTimedOut,
    OutOfMemory,
    ProcessExited,
    ProcessStarted,
    ProtocolViolated,
    QueueLoad,
    RecordGivenUp,
    RecordLoadFailure,
    RecordUnkillable,
    RetryDue,
    ScheduleRetry,
    Situation,
    StartDrain,
    StartFailed,
    StartProcess,
    StopRouting,
    Unkillable,
    WantDown,
    WantUp,
)
from mmsup.supervisor.processes.backoff import PROBE_AFTER_S, GiveUp, Retry

Step = tuple[Situation, list[Action]]
Handler = Callable[[Situation, Any], Step]  # the second argument is the event of that cell


class InvalidTransition(AssertionError):  # noqa: N818 - the name that the design gives it
    """A cell that nobody wrote: a bug of ours."""


def step(situation: Situation, event: Event, name: str = "?", history: Sequence[str] = ()) -> Step:
    """What an event makes of a situation, and what is to be done, in this order."""
    handler = TABLE.get((situation.state, type(event)))
    if handler is None:
        told = "; ".join(history) or "none"
        raise InvalidTransition(f"instance {name}: {type(event).__name__} in {situation.state}; its story: {told}")
    return handler(situation, event)


# Handlers, from the plainest on.


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
    return replace(situation, state=InstanceState.WARMING if event.warming else InstanceState.LOADING), []


def _serve(situation: Situation, _event: BecameReady) -> Step:
    return replace(situation, state=InstanceState.READY), [AnnounceReady()]


def _await_failed_exit(situation: Situation, event: LoadReportedFailed) -> Step:
    return replace(situation, state=InstanceState.STOPPING), [RecordLoadFailure(event.code, event.text), ExpectExit()]


def _await_crash_exit(situation: Situation, _event: CrashReported) -> Step:
    return replace(situation, state=InstanceState.STOPPING), [ExpectExit()]


def _condemn_crash(situation: Situation, event: CrashReported) -> Step:
    # No kill: it would overwrite the true signal, and cut faulthandler off in mid-sentence.
    return replace(situation, state=InstanceState.STOPPING), [Condemn(event.code, event.text), ExpectExit()]


def _kill_unwanted(_situation: Situation, _event: WantDown) -> Step:
    return Situation(wanted=False, state=InstanceState.STOPPING), [Kill()]


def _kill(situation: Situation, _event: Event) -> Step:
    return situation, [Kill()]


def _fail_load_timeout(situation: Situation, event: LoadTimedOut) -> Step:
    return replace(situation, state=InstanceState.STOPPING), [RecordLoadFailure("load_timeout", event.text), Kill()]


def _fail_protocol(situation: Situation, event: ProtocolViolated) -> Step:
    return replace(situation, state=InstanceState.STOPPING), [RecordLoadFailure("load_failed", event.text), Kill()]


def _condemn_hung(situation: Situation, event: HangDetected) -> Step:
    return replace(situation, state=InstanceState.STOPPING), [Condemn("worker_hung", event.text), Kill()]


def _condemn_protocol(situation: Situation, event: ProtocolViolated | LoadReportedFailed) -> Step:
    return replace(situation, state=InstanceState.STOPPING), [Condemn("bad_worker_reply", event.text), Kill()]


def _fail_memory(situation: Situation, event: OutOfMemory) -> Step:
    return replace(situation, state=InstanceState.STOPPING), [RecordLoadFailure("does_not_fit", event.text), Kill()]


def _condemn_memory(situation: Situation, event: OutOfMemory) -> Step:
    # Killed also if it lives: the kernel takes the largest, and a worker whose child is gone is half dead.
    return replace(situation, state=InstanceState.STOPPING), [Condemn("worker_oom", event.text), Kill()]


def _condemn_slow_drain(situation: Situation, _event: ExitOverdue) -> Step:
    text = "it did not finish in the time given to drain"
    return replace(situation, state=InstanceState.STOPPING), [Condemn("worker_hung", text), Kill()]


def _mark_unkillable(situation: Situation, _event: Unkillable) -> Step:
    # Killed again: nobody knows what a signal met that did not end it.
    return replace(situation, state=InstanceState.QUARANTINED), [RecordUnkillable(), Kill()]


def _drain(_situation: Situation, _event: WantDown) -> Step:
    return Situation(wanted=False, state=InstanceState.DRAINING), [StopRouting(), StartDrain()]


def _ended(situation: Situation, event: ProcessExited | StartFailed) -> Step:
    if not situation.wanted:
        return _finish_now(situation, event)
    match event.next:
        case Retry(after_s):
            return replace(situation, state=InstanceState.BACKOFF), [ScheduleRetry(after_s, probe=False)]
        case GiveUp(code, reason):
            actions: list[Action] = [RecordGivenUp(code, reason), ScheduleRetry(PROBE_AFTER_S, probe=True)]
            return replace(situation, state=InstanceState.FAILED), actions


def _drained(situation: Situation, event: ProcessExited) -> Step:
    """An orderly end is nobody's fault: if it is wanted again, the next one follows at once."""
    if not situation.wanted:
        return _finish_now(situation, event)
    return Situation(wanted=True, state=InstanceState.ABSENT), [QueueLoad()]


_STARTING_UP: Final[dict[type[Any], Handler]] = {
    WantUp: _want_up,
    WantDown: _kill_unwanted,
    LoadAdmitted: _ignore,
    ProcessStarted: _ignore,
    StartFailed: _ended,
    LoadProgressed: _progress,
    BecameReady: _serve,
    LoadReportedFailed: _await_failed_exit,
    CrashReported: _await_crash_exit,
    ProcessExited: _ended,
    HangDetected: _ignore,
    LoadTimedOut: _fail_load_timeout,
    ProtocolViolated: _fail_protocol,
    OutOfMemory: _fail_memory,
    ExitOverdue: _ignore,
    Unkillable: _ignore,
    RetryDue: _ignore,
}
_WAITING: Final[dict[type[Any], Handler]] = {
    WantUp: _want_up,
    WantDown: _cancel,
    LoadAdmitted: _ignore,
    ProcessStarted: _ignore,
    StartFailed: _ignore,
    LoadProgressed: _ignore,
    BecameReady: _ignore,
    LoadReportedFailed: _ignore,
    CrashReported: _ignore,
    ProcessExited: _ignore,
    HangDetected: _ignore,
    LoadTimedOut: _ignore,
    ProtocolViolated: _ignore,
    OutOfMemory: _ignore,
    ExitOverdue: _ignore,
    Unkillable: _ignore,
    RetryDue: _queue_load,
}
_STOPPING: Final[dict[type[Any], Handler]] = {
    WantUp: _want_up,
    WantDown: _want_down,
    LoadAdmitted: _ignore,
    ProcessStarted: _kill,  # it was to end before the keeper had started it
    StartFailed: _ended,
    LoadProgressed: _ignore,
    BecameReady: _ignore,
    LoadReportedFailed: _ignore,
    CrashReported: _ignore,
    ProcessExited: _ended,
    HangDetected: _ignore,
    LoadTimedOut: _ignore,
    ProtocolViolated: _ignore,
    OutOfMemory: _kill,
    ExitOverdue: _kill,
    Unkillable: _mark_unkillable,
    RetryDue: _ignore,
}
_ROWS: Final[dict[InstanceState, dict[type[Any], Handler]]] = {
    InstanceState.ABSENT: {
        **_WAITING,
        WantUp: _queue_load,
        WantDown: _finish_now,
        LoadAdmitted: _start,
        RetryDue: _ignore,
    },
    InstanceState.STARTING: _STARTING_UP,
    InstanceState.LOADING: _STARTING_UP,
    InstanceState.WARMING: _STARTING_UP,
    InstanceState.READY: {
        **_STARTING_UP,
        WantDown: _drain,
        StartFailed: _ignore,
        LoadProgressed: _ignore,
        BecameReady: _ignore,
        LoadReportedFailed: _condemn_protocol,
        CrashReported: _condemn_crash,
        HangDetected: _condemn_hung,
        LoadTimedOut: _ignore,
        ProtocolViolated: _condemn_protocol,
        OutOfMemory: _condemn_memory,
    },
    InstanceState.DRAINING: {
        WantUp: _want_up,
        WantDown: _want_down,
        LoadAdmitted: _ignore,
        ProcessStarted: _ignore,
        StartFailed: _ignore,
        LoadProgressed: _ignore,
        BecameReady: _ignore,
        LoadReportedFailed: _condemn_protocol,
        CrashReported: _condemn_crash,
        ProcessExited: _drained,
        HangDetected: _condemn_hung,
        LoadTimedOut: _ignore,
        ProtocolViolated: _ignore,  # a worker that leaves closes its channel before the kernel reports its exit
        OutOfMemory: _condemn_memory,
        ExitOverdue: _condemn_slow_drain,
        Unkillable: _ignore,
        RetryDue: _ignore,
    },
    InstanceState.STOPPING: _STOPPING,
    InstanceState.QUARANTINED: {**_STOPPING, Unkillable: _kill},
    InstanceState.BACKOFF: _WAITING,
    InstanceState.FAILED: _WAITING,
    InstanceState.STOPPED: {**_WAITING, WantUp: _queue_load, WantDown: _want_down, RetryDue: _ignore},
}
TABLE: Final[dict[tuple[InstanceState, type[Any]], Handler]] = {
    (state, event): handler for state, row in _ROWS.items() for event, handler in row.items()
}
