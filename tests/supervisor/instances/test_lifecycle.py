from __future__ import annotations

import random
from typing import Any, cast

import pytest

from mmsup.supervisor.instances import lifecycle
from mmsup.supervisor.instances.lifecycle import TABLE, InvalidTransition, step
from mmsup.supervisor.instances.lifecycle_events import (
    ALIVE,
    EVENTS,
    STARTING_UP,
    Action,
    AnnounceOffloaded,
    AnnounceReady,
    AnnounceRestored,
    BecameReady,
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
from mmsup.supervisor.instances.restart_policy import GiveUp, NextTry, Retry

NOW, LATER, NEVER = Retry(0.0), Retry(2.0), GiveUp("crash_loop", "6 deaths in 60 s")
UP, DOWN = True, False


def any_event(kind: type[Any], rng: random.Random) -> Event:
    decisions: list[NextTry] = [NOW, LATER, NEVER]
    decision = rng.choice(decisions)
    made: dict[type[Any], Event] = {
        StartFailed: StartFailed(decision),
        ProcessExited: ProcessExited(decision),
        LoadProgressed: LoadProgressed(rng.random() < 0.5),
        LoadReportedFailed: LoadReportedFailed("load_failed", "no"),
        Offloaded: Offloaded(0.1, 1 << 20),
        Restored: Restored(0.1),
        CrashReported: CrashReported("worker_crashed", "SIGSEGV"),
        HangDetected: HangDetected("stuck"),
        LoadTimedOut: LoadTimedOut("slow"),
        ProtocolViolated: ProtocolViolated("false"),
        OutOfMemory: OutOfMemory("full"),
        GpuMemoryExceeded: GpuMemoryExceeded("full"),
    }
    return made[kind] if kind in made else kind()


def test_every_cell_of_the_table_is_written() -> None:
    assert set(TABLE) == {(state, event) for state in InstanceState for event in EVENTS}


def test_a_missing_cell_names_instance_state_event_and_transitions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(
        cast("dict[Any, Any]", lifecycle.TABLE), (InstanceState.READY, HangDetected)
    )  # its cells are of many types
    with pytest.raises(
        InvalidTransition, match=r"bert/1#7\.2: HangDetected in ready; before: Started: a -> b; and so on"
    ):
        step(Situation(UP, InstanceState.READY), HangDetected("stuck"), "bert/1#7.2", ["Started: a -> b", "and so on"])


CELLS: list[tuple[bool, InstanceState, Event, bool, InstanceState, list[type[Action]]]] = [
    (DOWN, InstanceState.ABSENT, WantUp(), UP, InstanceState.ABSENT, [QueueLoad]),
    (UP, InstanceState.ABSENT, WantUp(), UP, InstanceState.ABSENT, []),
    (UP, InstanceState.ABSENT, LoadAdmitted(), UP, InstanceState.STARTING, [StartProcess]),
    (DOWN, InstanceState.ABSENT, LoadAdmitted(), DOWN, InstanceState.ABSENT, []),
    (UP, InstanceState.ABSENT, WantDown(), DOWN, InstanceState.STOPPED, [Finish]),
    (UP, InstanceState.STARTING, LoadProgressed(is_warm_up=False), UP, InstanceState.LOADING, []),
    (UP, InstanceState.LOADING, LoadProgressed(is_warm_up=True), UP, InstanceState.WARMING, []),
    (UP, InstanceState.WARMING, BecameReady(), UP, InstanceState.READY, [AnnounceReady]),
    (UP, InstanceState.STARTING, StartFailed(LATER), UP, InstanceState.BACKOFF, [ScheduleRetry]),
    (
        UP,
        InstanceState.LOADING,
        LoadReportedFailed("load_failed", "no"),
        UP,
        InstanceState.STOPPING,
        [RecordLoadFailure, ExpectExit],
    ),
    (UP, InstanceState.LOADING, LoadTimedOut("slow"), UP, InstanceState.STOPPING, [RecordLoadFailure, Kill]),
    (UP, InstanceState.LOADING, CrashReported("worker_crashed", "x"), UP, InstanceState.STOPPING, [ExpectExit]),
    (UP, InstanceState.LOADING, WantDown(), DOWN, InstanceState.STOPPING, [Kill]),
    (UP, InstanceState.WARMING, ProcessExited(NOW), UP, InstanceState.BACKOFF, [ScheduleRetry]),
    (UP, InstanceState.READY, ProcessExited(LATER), UP, InstanceState.BACKOFF, [ScheduleRetry]),
    (UP, InstanceState.READY, ProcessExited(NEVER), UP, InstanceState.FAILED, [RecordGivenUp, ScheduleRetry]),
    (UP, InstanceState.READY, HangDetected("stuck"), UP, InstanceState.STOPPING, [Condemn, Kill]),
    (UP, InstanceState.READY, ProtocolViolated("false"), UP, InstanceState.STOPPING, [Condemn, Kill]),
    (UP, InstanceState.READY, OutOfMemory("full"), UP, InstanceState.STOPPING, [Condemn, Kill]),
    (UP, InstanceState.LOADING, OutOfMemory("full"), UP, InstanceState.STOPPING, [RecordLoadFailure, Kill]),
    (UP, InstanceState.READY, GpuMemoryExceeded("full"), UP, InstanceState.STOPPING, [Condemn, Kill]),
    (UP, InstanceState.WARMING, GpuMemoryExceeded("full"), UP, InstanceState.STOPPING, [RecordLoadFailure, Kill]),
    (UP, InstanceState.STOPPING, OutOfMemory("full"), UP, InstanceState.STOPPING, [Kill]),
    (UP, InstanceState.READY, CrashReported("worker_crashed", "x"), UP, InstanceState.STOPPING, [Condemn, ExpectExit]),
    (UP, InstanceState.READY, WantDown(), DOWN, InstanceState.DRAINING, [StopRouting, StartDrain]),
    (DOWN, InstanceState.DRAINING, ProcessExited(NOW), DOWN, InstanceState.STOPPED, [Finish]),
    (DOWN, InstanceState.DRAINING, ExitOverdue(), DOWN, InstanceState.STOPPING, [Condemn, Kill]),
    (DOWN, InstanceState.DRAINING, WantUp(), UP, InstanceState.DRAINING, []),
    (UP, InstanceState.DRAINING, ProcessExited(NOW), UP, InstanceState.ABSENT, [QueueLoad]),
    (UP, InstanceState.STOPPING, ProcessStarted(), UP, InstanceState.STOPPING, [Kill]),
    (UP, InstanceState.STOPPING, ExitOverdue(), UP, InstanceState.STOPPING, [Kill]),
    (UP, InstanceState.STOPPING, Unkillable(), UP, InstanceState.QUARANTINED, [RecordUnkillable, Kill]),
    (UP, InstanceState.QUARANTINED, Unkillable(), UP, InstanceState.QUARANTINED, [Kill]),
    (UP, InstanceState.QUARANTINED, WantDown(), DOWN, InstanceState.QUARANTINED, []),
    (UP, InstanceState.QUARANTINED, ProcessExited(LATER), UP, InstanceState.BACKOFF, [ScheduleRetry]),
    (DOWN, InstanceState.QUARANTINED, ProcessExited(LATER), DOWN, InstanceState.STOPPED, [Finish]),
    (DOWN, InstanceState.STOPPING, ProcessExited(NEVER), DOWN, InstanceState.STOPPED, [Finish]),
    (UP, InstanceState.READY, WantOffloaded(), DOWN, InstanceState.OFFLOADING, [StopRouting, StartOffload]),
    (DOWN, InstanceState.OFFLOADING, Offloaded(0.1, 9), DOWN, InstanceState.OFFLOADED, [AnnounceOffloaded]),
    (DOWN, InstanceState.OFFLOADING, WantUp(), UP, InstanceState.OFFLOADING, []),
    (UP, InstanceState.OFFLOADING, Offloaded(0.1, 9), UP, InstanceState.OFFLOADED, [AnnounceOffloaded, QueueLoad]),
    (DOWN, InstanceState.OFFLOADING, WantDown(), DOWN, InstanceState.DRAINING, [StopRouting, StartDrain]),
    (
        DOWN,
        InstanceState.OFFLOADING,
        LoadReportedFailed("load_failed", "no"),
        DOWN,
        InstanceState.STOPPING,
        [RecordMoveFailure, ExpectExit],
    ),
    (DOWN, InstanceState.OFFLOADING, ProcessExited(NOW), DOWN, InstanceState.STOPPED, [RecordMoveFailure, Finish]),
    (
        DOWN,
        InstanceState.OFFLOADING,
        HangDetected("stuck"),
        DOWN,
        InstanceState.STOPPING,
        [RecordMoveFailure, Condemn, Kill],
    ),
    (
        DOWN,
        InstanceState.OFFLOADING,
        ExitOverdue(),
        DOWN,
        InstanceState.STOPPING,
        [RecordMoveFailure, Condemn, Kill],
    ),
    (DOWN, InstanceState.OFFLOADED, WantUp(), UP, InstanceState.OFFLOADED, [QueueLoad]),
    (UP, InstanceState.OFFLOADED, WantUp(), UP, InstanceState.OFFLOADED, []),
    (UP, InstanceState.OFFLOADED, LoadAdmitted(), UP, InstanceState.RESTORING, [StartRestore]),
    (DOWN, InstanceState.OFFLOADED, LoadAdmitted(), DOWN, InstanceState.OFFLOADED, []),
    (DOWN, InstanceState.OFFLOADED, WantDown(), DOWN, InstanceState.DRAINING, [StopRouting, StartDrain]),
    (DOWN, InstanceState.OFFLOADED, ProcessExited(LATER), DOWN, InstanceState.STOPPED, [Finish]),
    (DOWN, InstanceState.OFFLOADED, HangDetected("stuck"), DOWN, InstanceState.STOPPING, [Condemn, Kill]),
    (UP, InstanceState.RESTORING, Restored(0.1), UP, InstanceState.READY, [AnnounceRestored]),
    (UP, InstanceState.RESTORING, RestoreRefused(), UP, InstanceState.DRAINING, [StartDrain]),
    (UP, InstanceState.RESTORING, WantDown(), DOWN, InstanceState.STOPPING, [Kill]),
    (UP, InstanceState.RESTORING, ProcessExited(NOW), UP, InstanceState.BACKOFF, [RecordMoveFailure, ScheduleRetry]),
    (
        UP,
        InstanceState.RESTORING,
        LoadReportedFailed("load_failed", "no"),
        UP,
        InstanceState.STOPPING,
        [RecordMoveFailure, ExpectExit],
    ),
    (UP, InstanceState.READY, Offloaded(0.1, 9), UP, InstanceState.READY, []),
    (UP, InstanceState.BACKOFF, RetryDue(), UP, InstanceState.ABSENT, [QueueLoad]),
    (UP, InstanceState.FAILED, RetryDue(), UP, InstanceState.ABSENT, [QueueLoad]),
]


@pytest.mark.parametrize(("wanted", "state", "event", "then_wanted", "then_state", "actions"), CELLS)
def test_the_cells_that_do_something_do_this(
    wanted: bool,
    state: InstanceState,
    event: Event,
    then_wanted: bool,
    then_state: InstanceState,
    actions: list[type[Action]],
) -> None:
    situation, done = step(Situation(wanted, state), event)
    assert situation == Situation(then_wanted, then_state)
    assert [type(each) for each in done] == actions


def test_a_given_up_instance_is_probed_after_five_minutes() -> None:
    _, actions = step(Situation(UP, InstanceState.READY), ProcessExited(NEVER))
    assert actions[-1] == ScheduleRetry(300.0, probe=True)


def test_a_crash_is_never_answered_by_a_kill_that_would_hide_its_signal() -> None:
    for state in InstanceState:
        _, actions = step(Situation(UP, state), CrashReported("worker_crashed", "SIGSEGV"))
        assert Kill() not in actions


def test_gateways_are_told_before_a_ready_worker_is_killed() -> None:
    rng = random.Random(1)
    for state in (InstanceState.READY, InstanceState.DRAINING):
        for kind in EVENTS:
            _, actions = step(Situation(UP, state), any_event(kind, rng))
            if Kill() in actions:
                assert isinstance(actions[0], Condemn), (state, kind)


LOST = (InstanceState.STOPPING, InstanceState.BACKOFF, InstanceState.FAILED)


class World:
    """Follows what the actions would do, beside the machine."""

    def __init__(self) -> None:
        self.situation = Situation()
        self.process = False
        self.queued = False
        self.retry = False

    def feed(self, event: Event) -> None:
        ended = isinstance(event, ProcessExited | StartFailed) and self.process
        self.situation, actions = step(self.situation, event)
        if ended:
            self.process = False
        if isinstance(event, RetryDue):
            self.retry = False
        for action in actions:
            match action:
                case QueueLoad():
                    is_offloaded = self.situation.state is InstanceState.OFFLOADED
                    assert self.process == is_offloaded, "asked for a turn beside a living process"
                    self.queued = True
                case StartRestore():
                    assert self.process, "nothing is there to be restored"
                    self.queued = False
                case StartProcess():
                    assert not self.process, "two processes of one instance"
                    self.process, self.queued = True, False
                case StartDrain():
                    assert self.process, f"{action} without a process"
                    self.queued = False
                case Kill() | StopRouting() | StartOffload() | Condemn() | ExpectExit() | AnnounceReady():
                    assert self.process, f"{action} without a process"
                case ScheduleRetry():
                    self.retry, self.queued = True, False
                case _:
                    pass
        if any(type(each).__name__ in ("CancelRetry", "Finish") for each in actions):
            self.retry = self.queued = False
        self.check()

    def check(self) -> None:
        state = self.situation.state
        assert self.process == (state in ALIVE), f"a process in state {state}: {self.process}"
        assert state is not InstanceState.STOPPED or not self.situation.wanted
        assert self.retry == (state in (InstanceState.BACKOFF, InstanceState.FAILED))
        waits = state in (InstanceState.ABSENT, InstanceState.OFFLOADED)
        assert not self.situation.wanted or not waits or self.queued

    def possible(self, kind: type[Any]) -> bool:
        """Only an existing process exits, only a requested one is started."""
        if kind in (ProcessExited, StartFailed):
            return self.process and (
                kind is ProcessExited or self.situation.state in (InstanceState.STARTING, InstanceState.STOPPING)
            )
        if kind is RetryDue:
            return self.retry
        return kind is not ProcessStarted or self.process


def test_random_walks_keep_process_queue_and_timers_in_step_with_the_state() -> None:
    for seed in range(300):
        rng, world = random.Random(seed), World()
        for _ in range(200):
            kind = rng.choice(EVENTS)
            if world.possible(kind):
                world.feed(any_event(kind, rng))


def test_whatever_happens_to_a_model_in_a_move_is_noted_for_the_way_it_was_on() -> None:
    rng = random.Random(2)
    for state in (InstanceState.OFFLOADING, InstanceState.RESTORING):
        for kind in EVENTS:
            after, actions = step(Situation(UP, state), any_event(kind, rng))
            failures = [each for each in actions if isinstance(each, RecordMoveFailure)]
            is_ordered = kind in (WantDown, WantOffloaded, RestoreRefused)
            assert bool(failures) == (after.state in LOST and not is_ordered), (state, kind)
            assert all(each.is_restore == (state is InstanceState.RESTORING) for each in failures)


def test_from_every_state_an_unwanted_instance_stops() -> None:
    for state in InstanceState:
        situation, _ = step(Situation(UP, state), WantDown())
        for _ in range(3):
            situation, _ = step(situation, ProcessExited(NOW))
        assert situation == Situation(DOWN, InstanceState.STOPPED)


def test_from_every_state_a_wanted_instance_can_become_ready() -> None:
    for state in InstanceState:
        situation, _ = step(Situation(DOWN, state), WantUp())
        for event in (ProcessExited(NOW), RetryDue(), LoadAdmitted(), LoadProgressed(is_warm_up=False), BecameReady()):
            situation, _ = step(situation, event)
        assert situation == Situation(UP, InstanceState.READY), state


def test_what_is_received_from_a_dead_process_changes_nothing() -> None:
    said: list[Event] = [
        LoadProgressed(is_warm_up=True),
        BecameReady(),
        LoadReportedFailed("load_failed", "no"),
        HangDetected("x"),
        ProtocolViolated("x"),
    ]
    for state in set(InstanceState) - ALIVE:
        for event in said:
            assert step(Situation(UP, state), event) == (Situation(UP, state), [])


def test_states_of_a_start_are_alive() -> None:
    assert STARTING_UP < ALIVE
