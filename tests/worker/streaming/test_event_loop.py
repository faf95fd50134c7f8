"""An asyncio loop that is turned and never sleeps."""

from __future__ import annotations

import asyncio
import select
import threading

import pytest

from mmsup.worker.streaming.event_loop import TurnedEventLoop


def test_a_turn_runs_until_all_tasks_wait_and_says_for_how_long() -> None:
    loop, seen = TurnedEventLoop(), list[str]()

    async def work() -> None:
        await asyncio.sleep(0)
        seen.append("begun")
        await asyncio.sleep(0.01)
        seen.append("slept")

    loop.create_task(work())
    assert loop.is_due()
    loop.turn()
    assert seen == ["begun"]
    assert not loop.is_due()
    left = loop.sleep_s(5)
    assert 0 < left <= 0.01
    select.select([loop.fileno()], [], [], left)
    loop.turn()
    assert seen == ["begun", "slept"]
    assert loop.sleep_s(5) == 5
    loop.close()


def test_a_coroutine_that_never_waits_does_not_keep_the_worker() -> None:
    loop, turns = TurnedEventLoop(), 0

    async def spin() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = loop.create_task(spin())
    loop.turn()
    assert 0 < turns < 100
    assert loop.is_due()
    task.cancel()
    loop.turn()
    assert task.cancelled()
    loop.close()


def test_another_thread_wakes_it_by_its_descriptor() -> None:
    loop, woken = TurnedEventLoop(), list[bool]()

    async def wait() -> None:
        event, running = asyncio.Event(), asyncio.get_running_loop()
        threading.Thread(target=running.call_soon_threadsafe, args=(event.set,)).start()
        await event.wait()
        woken.append(True)

    loop.create_task(wait())
    loop.turn()
    while not woken:
        assert select.select([loop.fileno()], [], [], 10)[0]
        loop.turn()
    loop.close()


def test_what_ends_the_process_leaves_the_turn() -> None:
    loop = TurnedEventLoop()

    async def leave() -> None:
        raise SystemExit(3)

    task = loop.create_task(leave())
    with pytest.raises(SystemExit):
        loop.turn()
    assert isinstance(task.exception(), SystemExit)
    loop.close()
