"""A worker that stands still is asked where it stands, and killed whether it answers or not."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from brain_double import Child, ControllerHarness
from mmsup.ipc.memory.status_page import Activity
from mmsup.ipc.messages.gateway_control import RequestOverdue
from mmsup.ipc.messages.keeper_control import SignalChild

pytestmark = pytest.mark.slow


def play(tmp_path: Path, act: Callable[[ControllerHarness], Awaitable[None]]) -> None:
    async def run() -> None:
        async with asyncio.timeout(60), ControllerHarness(tmp_path, ("bert",)) as house:
            await house.until(lambda: house.state("bert") == "ready")
            await act(house)

    asyncio.run(run())


def asked(house: ControllerHarness) -> list[int]:
    return [each.signal for each in house.keeper.sent_of(SignalChild)]


def hears(worker: Child, answer: bytes) -> None:
    """What the worker says when it is asked for its stack."""
    send = worker.process.send_signal

    def hear(sig: int) -> None:
        if sig == signal.SIGUSR2:
            os.write(worker.crash, answer)
        else:
            send(sig)

    worker.process.send_signal = hear  # type: ignore[method-assign]  # `sleep` has no handler


def test_a_hung_worker_is_asked_for_its_stack_and_then_killed(tmp_path: Path) -> None:
    async def act(house: ControllerHarness) -> None:
        (worker,) = house.keeper.workers()
        hears(worker, b'Current thread 0x1 (most recent call first):\n  File "/x/y.py", line 3 in f\n')
        worker.page.set_activity(Activity.BUSY, 1)
        house.gateway().send(RequestOverdue(*worker.life, 1.0))
        await house.until(lambda: house.events("worker_exit"))
        assert asked(house)[:2] == [signal.SIGUSR2, signal.SIGKILL]
        (death,) = house.events("worker_exit")
        assert death["cause"] == "hung"
        assert 'File "/x/y.py", line 3 in f' in death["text"]

    play(tmp_path, act)


def test_one_that_does_not_answer_is_killed_all_the_same(tmp_path: Path) -> None:
    async def act(house: ControllerHarness) -> None:
        (worker,) = house.keeper.workers()
        hears(worker, b"")
        worker.page.set_activity(Activity.BUSY, 1)
        house.gateway().send(RequestOverdue(*worker.life, 1.0))
        await house.until(lambda: house.events("worker_exit"))
        assert asked(house)[:2] == [signal.SIGUSR2, signal.SIGKILL]

    play(tmp_path, act)


def test_one_that_is_stopped_is_not_asked(tmp_path: Path) -> None:
    async def act(house: ControllerHarness) -> None:
        (worker,) = house.keeper.workers()
        worker.process.send_signal(signal.SIGSTOP)
        await asyncio.to_thread(os.waitid, os.P_PID, worker.process.pid, os.WSTOPPED | os.WNOWAIT)
        worker.page.set_activity(Activity.BUSY, 1)
        house.gateway().send(RequestOverdue(*worker.life, 1.0))
        await house.until(lambda: house.events("worker_exit"))
        assert signal.SIGUSR2 not in asked(house)

    play(tmp_path, act)
