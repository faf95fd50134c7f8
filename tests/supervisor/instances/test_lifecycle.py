from __future__ import annotations

import random
from typing import Any, cast

import pytest

from mmsup.supervisor.instances import lifecycle
from mmsup.supervisor.instances.lifecycle import TABLE, InvalidTransition, step
from mmsup.supervisor.instances.lifecycle_events import (
    ALIVE,
    COMING_UP,
    EVENTS,
    Action,
    Admitted,
    AnnounceReady,
    AskAdmission,
    BecameReady,
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
from mmsup.supervisor.processes.backoff import GiveUp, Next, Retry

NOW, LATER, NEVER = Retry(0.0), Retry(2.0), GiveUp("crash_loop", "6 deaths in 60 s")
UP, DOWN = True, False


def any_event(kind: type[Any], rng: random.Random) -> Event:
    decisions: list[Next] = [NOW, LATER, NEVER]
    decision = rng.choice(decisions)
    made: dict[type[Any], Event] = {
        SpawnFailed: SpawnFailed(decision),
        Exited: Exited(decision),
        Staged: Staged(rng.random() < 0.5),
        LoadFailed: LoadFailed("load_failed", "no"),
        Crashing: Crashing("worker_crashed", "SIGSEGV"),
        Hung: Hung("stuck"),
        LoadTimedOut: LoadTimedOut("slow"),
        Distrusted: Distrusted("false"),
        OutOfMemory: OutOfMemory("full"),
    }
    return made[kind] if kind in made else kind()


def test_every_cell_of_the_table_is_written() -> None:
    assert set(TABLE) == {(state, event) for state in State for event in EVENTS}


def test_a_missing_cell_names_instance_state_event_and_story(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(cast("dict[Any, Any]", lifecycle.TABLE), (State.READY, Hung))  # its cells are of many types
    with pytest.raises(InvalidTransition, match=r"bert/1#7\.2: Hung in ready; its story: Spawned: a -> b; and so on"):
        step(Situation(UP, State.READY), Hung("stuck"), "bert/1#7.2", ["Spawned: a -> b", "and so on"])


CELLS: list[tuple[bool, State, Event, bool, State, list[type[Action]]]] = [
    (DOWN, State.ABSENT, WantUp(), UP, State.ABSENT, [AskAdmission]),
    (UP, State.ABSENT, WantUp(), UP, State.ABSENT, []),
    (UP, State.ABSENT, Admitted(), UP, State.STARTING, [Spawn]),
    (DOWN, State.ABSENT, Admitted(), DOWN, State.ABSENT, []),
    (UP, State.ABSENT, WantDown(), DOWN, State.STOPPED, [Finish]),
    (UP, State.STARTING, Staged(warming=False), UP, State.LOADING, []),
    (UP, State.LOADING, Staged(warming=True), UP, State.WARMING, []),
    (UP, State.WARMING, BecameReady(), UP, State.READY, [AnnounceReady]),
    (UP, State.STARTING, SpawnFailed(LATER), UP, State.BACKOFF, [ScheduleRetry]),
    (UP, State.LOADING, LoadFailed("load_failed", "no"), UP, State.STOPPING, [NoteLoadFailure, ExpectExit]),
    (UP, State.LOADING, LoadTimedOut("slow"), UP, State.STOPPING, [NoteLoadFailure, Kill]),
    (UP, State.LOADING, Crashing("worker_crashed", "x"), UP, State.STOPPING, [ExpectExit]),
    (UP, State.LOADING, WantDown(), DOWN, State.STOPPING, [Kill]),
    (UP, State.WARMING, Exited(NOW), UP, State.BACKOFF, [ScheduleRetry]),
    (UP, State.READY, Exited(LATER), UP, State.BACKOFF, [ScheduleRetry]),
    (UP, State.READY, Exited(NEVER), UP, State.FAILED, [NoteGivenUp, ScheduleRetry]),
    (UP, State.READY, Hung("stuck"), UP, State.STOPPING, [Condemn, Kill]),
    (UP, State.READY, Distrusted("false"), UP, State.STOPPING, [Condemn, Kill]),
    (UP, State.READY, OutOfMemory("full"), UP, State.STOPPING, [Condemn, Kill]),
    (UP, State.LOADING, OutOfMemory("full"), UP, State.STOPPING, [NoteLoadFailure, Kill]),
    (UP, State.STOPPING, OutOfMemory("full"), UP, State.STOPPING, [Kill]),
    (UP, State.READY, Crashing("worker_crashed", "x"), UP, State.STOPPING, [Condemn, ExpectExit]),
    (UP, State.READY, WantDown(), DOWN, State.DRAINING, [Withdraw, Drain]),
    (DOWN, State.DRAINING, Exited(NOW), DOWN, State.STOPPED, [Finish]),
    (DOWN, State.DRAINING, EndTimedOut(), DOWN, State.STOPPING, [Condemn, Kill]),
    (DOWN, State.DRAINING, WantUp(), UP, State.DRAINING, []),
    (UP, State.DRAINING, Exited(NOW), UP, State.ABSENT, [AskAdmission]),
    (UP, State.STOPPING, Spawned(), UP, State.STOPPING, [Kill]),
    (UP, State.STOPPING, EndTimedOut(), UP, State.STOPPING, [Kill]),
    (UP, State.STOPPING, Unkillable(), UP, State.QUARANTINED, [NoteUnkillable, Kill]),
    (UP, State.QUARANTINED, Unkillable(), UP, State.QUARANTINED, [Kill]),
    (UP, State.QUARANTINED, WantDown(), DOWN, State.QUARANTINED, []),
    (UP, State.QUARANTINED, Exited(LATER), UP, State.BACKOFF, [ScheduleRetry]),
    (DOWN, State.QUARANTINED, Exited(LATER), DOWN, State.STOPPED, [Finish]),
    (DOWN, State.STOPPING, Exited(NEVER), DOWN, State.STOPPED, [Finish]),
    (UP, State.BACKOFF, RetryDue(), UP, State.ABSENT, [AskAdmission]),
    (UP, State.FAILED, RetryDue(), UP, State.ABSENT, [AskAdmission]),
]


@pytest.mark.parametrize(("wanted", "state", "event", "then_wanted", "then_state", "actions"), CELLS)
def test_the_cells_that_do_something_do_this(
    wanted: bool, state: State, event: Event, then_wanted: bool, then_state: State, actions: list[type[Action]]
) -> None:
    situation, done = step(Situation(wanted, state), event)
    assert situation == Situation(then_wanted, then_state)
    assert [type(each) for each in done] == actions


def test_a_given_up_instance_is_probed_after_five_minutes() -> None:
    _, actions = step(Situation(UP, State.READY), Exited(NEVER))
    assert actions[-1] == ScheduleRetry(300.0, probe=True)


def test_a_crash_is_never_answered_by_a_kill_that_would_hide_its_signal() -> None:
    for state in State:
        _, actions = step(Situation(UP, state), Crashing("worker_crashed", "SIGSEGV"))
        assert Kill() not in actions


def test_gateways_hear_before_a_worker_that_serves_is_killed() -> None:
    rng = random.Random(1)
    for state in (State.READY, State.DRAINING):
        for kind in EVENTS:
            _, actions = step(Situation(UP, state), any_event(kind, rng))
            if Kill() in actions:
                assert isinstance(actions[0], Condemn), (state, kind)


class World:
    """What the actions would do, followed beside the machine."""

    def __init__(self) -> None:
        self.situation = Situation()
        self.process = False
        self.queued = False
        self.retry = False

    def feed(self, event: Event) -> None:
        ended = isinstance(event, Exited | SpawnFailed) and self.process
        self.situation, actions = step(self.situation, event)
        if ended:
            self.process = False
        if isinstance(event, RetryDue):
            self.retry = False
        for action in actions:
            match action:
                case AskAdmission():
                    assert not self.process, "asked for a turn beside a living process"
                    self.queued = True
                case Spawn():
                    assert not self.process, "two processes of one instance"
                    self.process, self.queued = True, False
                case Kill() | Drain() | Withdraw() | Condemn() | ExpectExit() | AnnounceReady():
                    assert self.process, f"{action} without a process"
                case ScheduleRetry():
                    self.retry = True
                case _:
                    pass
        if any(type(each).__name__ in ("CancelRetry", "Finish") for each in actions):
            self.retry = self.queued = False
        self.check()

    def check(self) -> None:
        state = self.situation.state
        assert self.process == (state in ALIVE), f"a process in state {state}: {self.process}"
        assert state is not State.STOPPED or not self.situation.wanted
        assert self.retry == (state in (State.BACKOFF, State.FAILED))
        assert not self.situation.wanted or state is not State.ABSENT or self.queued

    def possible(self, kind: type[Any]) -> bool:
        """Only a process that is there ends, only one that was asked for is spawned."""
        if kind in (Exited, SpawnFailed):
            return self.process and (kind is Exited or self.situation.state in (State.STARTING, State.STOPPING))
        if kind is RetryDue:
            return self.retry
        return kind is not Spawned or self.process


def test_random_walks_keep_process_queue_and_timers_in_step_with_the_state() -> None:
    for seed in range(300):
        rng, world = random.Random(seed), World()
        for _ in range(200):
            kind = rng.choice(EVENTS)
            if world.possible(kind):
                world.feed(any_event(kind, rng))


def test_from_every_state_an_unwanted_instance_comes_to_its_end() -> None:
    for state in State:
        situation, _ = step(Situation(UP, state), WantDown())
        for _ in range(3):
            situation, _ = step(situation, Exited(NOW))
        assert situation == Situation(DOWN, State.STOPPED)


def test_from_every_state_a_wanted_instance_can_come_to_serve() -> None:
    for state in State:
        situation, _ = step(Situation(DOWN, state), WantUp())
        for event in (Exited(NOW), RetryDue(), Admitted(), Staged(warming=False), BecameReady()):
            situation, _ = step(situation, event)
        assert situation == Situation(UP, State.READY), state


def test_what_a_dead_process_still_says_changes_nothing() -> None:
    said: list[Event] = [
        Staged(warming=True),
        BecameReady(),
        LoadFailed("load_failed", "no"),
        Hung("x"),
        Distrusted("x"),
    ]
    for state in set(State) - ALIVE:
        for event in said:
            assert step(Situation(UP, state), event) == (Situation(UP, state), [])


def test_states_that_come_up_are_alive() -> None:
    assert COMING_UP < ALIVE
