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
    Admitted,
    AnnounceReady,
    AskAdmission,
    BecameReady,
    CancelRetry,
    Condemn,
    Crashing,
    Distrusted,
    Drain,
    EndTimedOut,
    Event,
    Exited,
    ExpectExit,
    Finish,
    Hung,
    Kill,
    LoadFailed,
    LoadTimedOut,
    NoteGivenUp,
    NoteLoadFailure,
    NoteUnkillable,
    OutOfMemory,
    RetryDue,
    ScheduleRetry,
    Situation,
    Spawn,
    Spawned,
    SpawnFailed,
    Staged,
    State,
    Unkillable,
    WantDown,
    WantUp,
    Withdraw,
)
from mmsup.supervisor.processes.backoff import PROBE_AFTER_S, GiveUp, Retry

Step = tuple[Situation, list[Action]]
Handler = Callable[[Situation, Any], Step]  # the second argument is the event of that cell


class InvalidTransition(AssertionError):  # noqa: N818 - the name that the design gives it
    """A cell that nobody wrote: a bug of ours."""


def step(situation: Situation, event: Event, who: str = "?", story: Sequence[str] = ()) -> Step:
    """What an event makes of a situation, and what is to be done, in this order."""
    handler = TABLE.get((situation.state, type(event)))
    if handler is None:
        told = "; ".join(story) or "none"
        raise InvalidTransition(f"instance {who}: {type(event).__name__} in {situation.state}; its story: {told}")
    return handler(situation, event)


# Handlers, from the plainest on.


def _ignore(situation: Situation, _event: Event) -> Step:
    return situation, []


def _want_up(situation: Situation, _event: WantUp) -> Step:
    return replace(situation, wanted=True), []


def _want_down(situation: Situation, _event: WantDown) -> Step:
    return replace(situation, wanted=False), []


def _queue(situation: Situation, _event: WantUp | RetryDue) -> Step:
    if situation.wanted and situation.state is State.ABSENT:
        return situation, []
    return Situation(wanted=True, state=State.ABSENT), [AskAdmission()]


def _finish(_situation: Situation, _event: Event) -> Step:
    return Situation(wanted=False, state=State.STOPPED), [Finish()]


def _cancel(_situation: Situation, _event: WantDown) -> Step:
    return Situation(wanted=False, state=State.STOPPED), [CancelRetry(), Finish()]


def _spawn(situation: Situation, _event: Admitted) -> Step:
    if not situation.wanted:
        return situation, []
    return replace(situation, state=State.STARTING), [Spawn()]


def _stage(situation: Situation, event: Staged) -> Step:
    return replace(situation, state=State.WARMING if event.warming else State.LOADING), []


def _serve(situation: Situation, _event: BecameReady) -> Step:
    return replace(situation, state=State.READY), [AnnounceReady()]


def _leave_failed(situation: Situation, event: LoadFailed) -> Step:
    return replace(situation, state=State.STOPPING), [NoteLoadFailure(event.code, event.text), ExpectExit()]


def _await_crash(situation: Situation, _event: Crashing) -> Step:
    return replace(situation, state=State.STOPPING), [ExpectExit()]


def _condemn_crash(situation: Situation, event: Crashing) -> Step:
    # No kill: it would overwrite the true signal, and cut faulthandler off in mid-sentence.
    return replace(situation, state=State.STOPPING), [Condemn(event.code, event.text), ExpectExit()]


def _drop(_situation: Situation, _event: WantDown) -> Step:
    return Situation(wanted=False, state=State.STOPPING), [Kill()]


def _kill(situation: Situation, _event: Event) -> Step:
    return situation, [Kill()]


def _fail_late(situation: Situation, event: LoadTimedOut) -> Step:
    return replace(situation, state=State.STOPPING), [NoteLoadFailure("load_timeout", event.text), Kill()]


def _fail_loading(situation: Situation, event: Distrusted) -> Step:
    return replace(situation, state=State.STOPPING), [NoteLoadFailure("load_failed", event.text), Kill()]


def _condemn_hung(situation: Situation, event: Hung) -> Step:
    return replace(situation, state=State.STOPPING), [Condemn("worker_hung", event.text), Kill()]


def _condemn_false(situation: Situation, event: Distrusted | LoadFailed) -> Step:
    return replace(situation, state=State.STOPPING), [Condemn("bad_worker_reply", event.text), Kill()]


def _fail_unfit(situation: Situation, event: OutOfMemory) -> Step:
    return replace(situation, state=State.STOPPING), [NoteLoadFailure("does_not_fit", event.text), Kill()]


def _condemn_unfit(situation: Situation, event: OutOfMemory) -> Step:
    # Killed also if it lives: the kernel takes the largest, and a worker whose child is gone is half dead.
    return replace(situation, state=State.STOPPING), [Condemn("worker_oom", event.text), Kill()]


def _condemn_late(situation: Situation, _event: EndTimedOut) -> Step:
    text = "it did not finish in the time given to drain"
    return replace(situation, state=State.STOPPING), [Condemn("worker_hung", text), Kill()]


def _quarantine(situation: Situation, _event: Unkillable) -> Step:
    # Killed again: nobody knows what a signal met that did not end it.
    return replace(situation, state=State.QUARANTINED), [NoteUnkillable(), Kill()]


def _drain(_situation: Situation, _event: WantDown) -> Step:
    return Situation(wanted=False, state=State.DRAINING), [Withdraw(), Drain()]


def _ended(situation: Situation, event: Exited | SpawnFailed) -> Step:
    if not situation.wanted:
        return _finish(situation, event)
    match event.next:
        case Retry(after_s):
            return replace(situation, state=State.BACKOFF), [ScheduleRetry(after_s, probe=False)]
        case GiveUp(code, reason):
            actions: list[Action] = [NoteGivenUp(code, reason), ScheduleRetry(PROBE_AFTER_S, probe=True)]
            return replace(situation, state=State.FAILED), actions


def _drained(situation: Situation, event: Exited) -> Step:
    """An orderly end is nobody's fault: if it is wanted again, the next one follows at once."""
    if not situation.wanted:
        return _finish(situation, event)
    return Situation(wanted=True, state=State.ABSENT), [AskAdmission()]


_COMING_UP: Final[dict[type[Any], Handler]] = {
    WantUp: _want_up,
    WantDown: _drop,
    Admitted: _ignore,
    Spawned: _ignore,
    SpawnFailed: _ended,
    Staged: _stage,
    BecameReady: _serve,
    LoadFailed: _leave_failed,
    Crashing: _await_crash,
    Exited: _ended,
    Hung: _ignore,
    LoadTimedOut: _fail_late,
    Distrusted: _fail_loading,
    OutOfMemory: _fail_unfit,
    EndTimedOut: _ignore,
    Unkillable: _ignore,
    RetryDue: _ignore,
}
_WAITING: Final[dict[type[Any], Handler]] = {
    WantUp: _want_up,
    WantDown: _cancel,
    Admitted: _ignore,
    Spawned: _ignore,
    SpawnFailed: _ignore,
    Staged: _ignore,
    BecameReady: _ignore,
    LoadFailed: _ignore,
    Crashing: _ignore,
    Exited: _ignore,
    Hung: _ignore,
    LoadTimedOut: _ignore,
    Distrusted: _ignore,
    OutOfMemory: _ignore,
    EndTimedOut: _ignore,
    Unkillable: _ignore,
    RetryDue: _queue,
}
_STOPPING: Final[dict[type[Any], Handler]] = {
    WantUp: _want_up,
    WantDown: _want_down,
    Admitted: _ignore,
    Spawned: _kill,  # it was to end before the keeper had started it
    SpawnFailed: _ended,
    Staged: _ignore,
    BecameReady: _ignore,
    LoadFailed: _ignore,
    Crashing: _ignore,
    Exited: _ended,
    Hung: _ignore,
    LoadTimedOut: _ignore,
    Distrusted: _ignore,
    OutOfMemory: _kill,
    EndTimedOut: _kill,
    Unkillable: _quarantine,
    RetryDue: _ignore,
}
_ROWS: Final[dict[State, dict[type[Any], Handler]]] = {
    State.ABSENT: {**_WAITING, WantUp: _queue, WantDown: _finish, Admitted: _spawn, RetryDue: _ignore},
    State.STARTING: _COMING_UP,
    State.LOADING: _COMING_UP,
    State.WARMING: _COMING_UP,
    State.READY: {
        **_COMING_UP,
        WantDown: _drain,
        SpawnFailed: _ignore,
        Staged: _ignore,
        BecameReady: _ignore,
        LoadFailed: _condemn_false,
        Crashing: _condemn_crash,
        Hung: _condemn_hung,
        LoadTimedOut: _ignore,
        Distrusted: _condemn_false,
        OutOfMemory: _condemn_unfit,
    },
    State.DRAINING: {
        WantUp: _want_up,
        WantDown: _want_down,
        Admitted: _ignore,
        Spawned: _ignore,
        SpawnFailed: _ignore,
        Staged: _ignore,
        BecameReady: _ignore,
        LoadFailed: _condemn_false,
        Crashing: _condemn_crash,
        Exited: _drained,
        Hung: _condemn_hung,
        LoadTimedOut: _ignore,
        Distrusted: _ignore,  # a worker that leaves closes its channel before the kernel reports its exit
        OutOfMemory: _condemn_unfit,
        EndTimedOut: _condemn_late,
        Unkillable: _ignore,
        RetryDue: _ignore,
    },
    State.STOPPING: _STOPPING,
    State.QUARANTINED: {**_STOPPING, Unkillable: _kill},
    State.BACKOFF: _WAITING,
    State.FAILED: _WAITING,
    State.STOPPED: {**_WAITING, WantUp: _queue, WantDown: _want_down, RetryDue: _ignore},
}
TABLE: Final[dict[tuple[State, type[Any]], Handler]] = {
    (state, event): handler for state, row in _ROWS.items() for event, handler in row.items()
}
