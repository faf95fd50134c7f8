"""Deadline timer: expires once, not before a deadline that was moved, and never after cancel."""

from __future__ import annotations

import asyncio

import uvloop

from mmsup.gateway.connections.deadline_timer import DeadlineTimer


async def _expired_after_s(first_s: float, then_s: float | None, wait_s: float) -> list[float]:
    loop = asyncio.get_running_loop()
    start_s, expired_s = loop.time(), list[float]()
    timer = DeadlineTimer(loop, lambda: expired_s.append(loop.time() - start_s))
    timer.set(first_s)
    if then_s is not None:
        timer.set(then_s)
    await asyncio.sleep(wait_s)
    timer.cancel()
    return expired_s


def test_a_timer_expires_once_and_not_before_its_deadline() -> None:
    (expired_s,) = uvloop.run(_expired_after_s(0.02, None, 0.06))
    assert expired_s >= 0.019


def test_a_deadline_moved_later_is_not_met_early() -> None:
    (expired_s,) = uvloop.run(_expired_after_s(0.01, 0.04, 0.08))
    assert expired_s >= 0.039


def test_a_deadline_moved_earlier_is_met() -> None:
    assert len(uvloop.run(_expired_after_s(10.0, 0.01, 0.05))) == 1


def test_a_deadline_moved_by_assignment_is_honoured() -> None:
    async def run() -> bool:
        loop = asyncio.get_running_loop()
        expired = asyncio.Event()
        timer = DeadlineTimer(loop, expired.set)
        timer.set(0.01)
        timer.deadline_s = loop.time() + 10.0
        await asyncio.sleep(0.03)
        timer.cancel()
        return expired.is_set()

    assert not uvloop.run(run())


def test_a_cancelled_timer_never_expires() -> None:
    async def run() -> bool:
        expired = asyncio.Event()
        timer = DeadlineTimer(asyncio.get_running_loop(), expired.set)
        timer.set(0.01)
        timer.cancel()
        await asyncio.sleep(0.03)
        return expired.is_set()

    assert not uvloop.run(run())
