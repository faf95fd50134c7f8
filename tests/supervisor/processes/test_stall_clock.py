from __future__ import annotations

import pytest

from mmsup.supervisor.linux.process_activity import NS, ProcessActivity, ThreadActivity
from mmsup.supervisor.linux.thread_wait import Wait
from mmsup.supervisor.processes.stall_clock import StallClock, queued_ns

LIMIT_S = 5.0


def seen(
    at_s: float, cpu_s: float = 0.0, queued_s: float = 0.0, state: str = "S", wait: Wait = Wait.NOTHING_OUTSIDE
) -> ProcessActivity:
    """One look at a process of one thread."""
    thread = ThreadActivity(state, round(cpu_s * NS), round(queued_s * NS), wait)
    return ProcessActivity(round(at_s * NS), round(cpu_s * NS), ((1, thread),))


def stalled_s(*looks: ProcessActivity, since_s: float = 0.0) -> float:
    clock = StallClock()
    clock.begin(round(since_s * NS), LIMIT_S)
    for each in looks:
        clock.add(each)
    return clock.stalled_s


SECONDS = [0.5 * number for number in range(1, 25)]


@pytest.mark.parametrize("state", ["S", "T"])
def test_a_lock_a_pause_or_a_stop_is_a_stall_from_its_beginning(state: str) -> None:
    looks = [seen(each, state=state) for each in SECONDS if each <= LIMIT_S]
    assert stalled_s(*looks) == LIMIT_S
    assert stalled_s(*looks[:-1]) == LIMIT_S - 0.5


def test_a_computation_makes_progress() -> None:
    assert stalled_s(*(seen(each, cpu_s=each, state="R") for each in SECONDS)) == 0.0


def test_a_deadlock_beside_a_thread_that_ticks_is_a_stall() -> None:
    assert stalled_s(*(seen(each, cpu_s=0.02 * each) for each in SECONDS)) >= LIMIT_S


def test_a_pool_that_spins_for_a_moment_after_a_deadlock_began_postpones_nothing() -> None:
    assert stalled_s(*(seen(each, cpu_s=min(each, 0.2)) for each in SECONDS if each <= LIMIT_S)) == LIMIT_S


def test_a_computation_that_ends_in_a_deadlock_is_a_stall_once_the_limit_has_passed_since() -> None:
    looks = [seen(each, cpu_s=min(each, 3.0)) for each in SECONDS]
    assert stalled_s(*looks[:14]) == 0.0, "after 7 s, 4 of them in the deadlock"
    assert stalled_s(*looks[:17]) >= LIMIT_S, "after 8.5 s"


def test_a_starved_computation_is_judged_by_the_time_it_was_given() -> None:
    looks = [seen(each, cpu_s=0.02 * each, queued_s=0.98 * each, state="R") for each in SECONDS]
    assert stalled_s(*looks) < 0.5


def test_a_computation_that_never_gets_the_processor_does_not_stall() -> None:
    assert stalled_s(*(seen(each, state="R") for each in SECONDS)) <= 0.5, "only what lies before the first look"


@pytest.mark.parametrize("wait", [Wait.DISK, Wait.SOCKET])
def test_a_wait_for_a_disk_or_a_socket_is_no_stall(wait: Wait) -> None:
    assert stalled_s(*(seen(each, wait=wait) for each in SECONDS)) == 0.0


def test_a_stall_after_a_wait_outside_counts_from_its_end() -> None:
    looks = [seen(each, wait=Wait.SOCKET if each <= 4.0 else Wait.NOTHING_OUTSIDE) for each in SECONDS]
    assert stalled_s(*looks[:16]) == 4.0, "after 8 s"
    assert stalled_s(*looks[:18]) == LIMIT_S


def test_what_nobody_has_seen_counts_for_half_the_limit_at_most() -> None:
    assert stalled_s(seen(100.0)) == LIMIT_S / 2


def test_another_run_begins_anew() -> None:
    clock = StallClock()
    clock.begin(0, LIMIT_S)
    for each in SECONDS:
        clock.add(seen(each))
    clock.begin(round(12.0 * NS), LIMIT_S)
    assert clock.stalled_s == 0.0
    assert not clock.has_looked


def test_the_next_look_is_when_the_limit_may_be_reached() -> None:
    clock = StallClock()
    clock.begin(0, LIMIT_S)
    clock.add(seen(1.25))
    assert clock.next_look_ns(round(1.25 * NS)) == round(2.5 * NS) + 1
    clock.add(seen(4.5))
    assert clock.next_look_ns(round(4.5 * NS)) == round(5.0 * NS) + 1


def test_the_time_in_a_queue_is_at_most_the_time_between_the_looks() -> None:
    assert queued_ns(seen(1.0, state="R"), seen(2.0, queued_s=1.5)) == NS
    assert queued_ns(seen(1.0, state="R"), seen(2.0, cpu_s=0.25, state="R")) == 0.75 * NS
    assert queued_ns(seen(1.0), seen(2.0)) == 0
    assert queued_ns(ProcessActivity(0), seen(2.0, queued_s=1.5)) == 0
