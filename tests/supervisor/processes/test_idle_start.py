"""How long a process that starts stays behind others."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time

import pytest

from mmsup.supervisor.linux.process_activity import NS, ProcessActivity, ThreadActivity
from mmsup.supervisor.processes import idle_start
from mmsup.supervisor.processes.idle_start import AWAITED_S, SPARE_S, IdleStart, QueueClock

SPINS = "import os\nos.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\nwhile True: pass"


def seen(at_s: float, ran_s: float = 0.0, queued_s: float = 0.0, state: str = "S") -> ProcessActivity:
    """One look at a process of one thread."""
    thread = ThreadActivity(state, round(ran_s * NS), round(queued_s * NS))
    return ProcessActivity(round(at_s * NS), round(ran_s * NS), ((1, thread),))


@pytest.mark.parametrize(
    ("looks", "queued_s"),
    [
        ([seen(0.0), seen(1.0, ran_s=1.0, state="R")], 0.0),  # it has a processor of its own
        ([seen(0.0), seen(1.0)], 0.0),  # it waits for a disk, or sleeps
        ([seen(0.0), seen(1.0, ran_s=0.7, queued_s=0.3)], 0.3),
        ([seen(0.0, state="R"), seen(1.0, state="R")], 1.0),  # it got nothing: the kernel has counted nothing yet
        ([ProcessActivity(0), ProcessActivity(NS // 4)], 0.25),  # the keeper has not told of it yet
        ([ProcessActivity(0), seen(0.25), seen(0.5)], 0.25),
    ],
)
def test_only_what_it_waited_for_the_processor_counts(looks: list[ProcessActivity], queued_s: float) -> None:
    clock = QueueClock()
    for each in looks:
        clock.add(each)
    assert clock.queued_s == pytest.approx(queued_s)


def test_who_keeps_nobody_waiting_starts_behind_others_for_longer() -> None:
    def bound_s(*, any_: bool, same: bool, before: bool) -> float:
        return idle_start.bound_s(does_any_serve=any_, does_same_serve=same, has_served=before)

    assert bound_s(any_=False, same=False, before=True) == 0, "there is nobody to yield to"
    assert bound_s(any_=True, same=False, before=True) == AWAITED_S, "its callers wait for a restart"
    assert bound_s(any_=True, same=True, before=True) == SPARE_S, "another one serves meanwhile"
    assert bound_s(any_=True, same=False, before=False) == SPARE_S, "nobody has been served by it"
    assert AWAITED_S < SPARE_S


def test_one_that_is_not_there_yet_is_released_at_the_bound_and_once() -> None:
    async def run() -> int:
        calls, released = list[str](), asyncio.Event()

        def release() -> None:
            calls.append("x")
            released.set()

        start, began = IdleStart(0.2, release), time.monotonic()
        async with asyncio.timeout(30):
            await released.wait()
        assert time.monotonic() - began >= 0.2
        start.end()
        return len(calls)

    assert asyncio.run(run()) == 1


def test_at_its_end_it_is_released_at_once_and_after_its_death_never() -> None:
    async def run() -> tuple[list[str], list[str]]:
        released: list[str] = []
        dead: list[str] = []
        IdleStart(60.0, lambda: released.append("x"), os.getpid()).end()
        start = IdleStart(0.0001, lambda: dead.append("x"), os.getpid())
        start.cancel()
        start.end()
        ended = asyncio.Event()
        IdleStart(0.0001, ended.set, os.getpid())  # had it not been cancelled, it would have ended before this one
        async with asyncio.timeout(30):
            await ended.wait()
        return released, dead

    assert asyncio.run(run()) == (["x"], [])


@pytest.mark.slow
def test_one_that_others_keep_from_the_processor_is_released_at_the_bound() -> None:
    async def run(pid: int) -> None:
        released = asyncio.Event()
        start = IdleStart(0.3, released.set, pid)
        async with asyncio.timeout(30):
            await released.wait()
        start.cancel()

    others = [subprocess.Popen([sys.executable, "-c", SPINS]) for _ in range(2)]
    idle = subprocess.Popen(
        [sys.executable, "-c", "import os\nos.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))\n" + SPINS]
    )
    try:
        asyncio.run(run(idle.pid))
    finally:
        for each in (*others, idle):
            each.kill()
            each.wait()


@pytest.mark.parametrize("is_long", [True, False])
def test_one_that_is_forked_goes_behind_others_only_if_it_computes_for_long(is_long: bool) -> None:
    async def run() -> list[str]:
        calls, entered = list[str](), asyncio.Event()

        def enter() -> None:
            calls.append("enter")
            entered.set()

        start = IdleStart(SPARE_S, lambda: calls.append("release"), enter=enter)
        assert not calls
        start.pid = os.getpid()
        if is_long:
            await asyncio.wait_for(entered.wait(), 20)
        start.end()
        return calls

    assert asyncio.run(run()) == (["enter", "release"] if is_long else [])
