"""A hung worker is asked for a stack dump, and killed whether it writes one or not."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from controller_double import Child, ControllerHarness
from mmsup.ipc.memory.status_page import Activity
from mmsup.ipc.messages.gateway_control import RequestOverdue
from mmsup.ipc.messages.keeper_control import SignalChild

pytestmark = pytest.mark.slow


def play(tmp_path: Path, scenario: Callable[[ControllerHarness], Awaitable[None]]) -> None:
    async def run() -> None:
        async with asyncio.timeout(60), ControllerHarness(tmp_path, ("bert",)) as harness:
            await harness.until(lambda: harness.state("bert") == "ready")
            await scenario(harness)

    asyncio.run(run())


def signals(harness: ControllerHarness) -> list[int]:
    return [each.signal for each in harness.keeper.sent_of(SignalChild)]


def answer_dump_request(worker: Child, answer: bytes) -> None:
    """Write this to the crash pipe at the signal that requests a dump."""
    send = worker.process.send_signal

    def send_signal(sig: int) -> None:
        if sig == signal.SIGUSR2:
            os.write(worker.crash, answer)
        else:
            send(sig)

    worker.process.send_signal = send_signal  # type: ignore[method-assign]  # `sleep` has no handler


def test_a_hung_worker_is_asked_for_a_dump_and_then_killed(tmp_path: Path) -> None:
    async def scenario(harness: ControllerHarness) -> None:
        (worker,) = harness.keeper.workers()
        answer_dump_request(worker, b'Current thread 0x1 (most recent call first):\n  File "/x/y.py", line 3 in f\n')
        worker.page.set_activity(Activity.BUSY, 1)
        harness.gateway().send(RequestOverdue(*worker.life, 1.0))
        await harness.until(lambda: harness.events("worker_exit"))
        assert signals(harness)[:2] == [signal.SIGUSR2, signal.SIGKILL]
        (death,) = harness.events("worker_exit")
        assert death["cause"] == "hung"
        assert 'File "/x/y.py", line 3 in f' in death["text"]

    play(tmp_path, scenario)


def test_a_worker_that_writes_no_dump_is_killed_all_the_same(tmp_path: Path) -> None:
    async def scenario(harness: ControllerHarness) -> None:
        (worker,) = harness.keeper.workers()
        answer_dump_request(worker, b"")
        worker.page.set_activity(Activity.BUSY, 1)
        harness.gateway().send(RequestOverdue(*worker.life, 1.0))
        await harness.until(lambda: harness.events("worker_exit"))
        assert signals(harness)[:2] == [signal.SIGUSR2, signal.SIGKILL]

    play(tmp_path, scenario)


def test_a_stopped_worker_is_not_asked(tmp_path: Path) -> None:
    async def scenario(harness: ControllerHarness) -> None:
        (worker,) = harness.keeper.workers()
        worker.process.send_signal(signal.SIGSTOP)
        await asyncio.to_thread(os.waitid, os.P_PID, worker.process.pid, os.WSTOPPED | os.WNOWAIT)
        worker.page.set_activity(Activity.BUSY, 1)
        harness.gateway().send(RequestOverdue(*worker.life, 1.0))
        await harness.until(lambda: harness.events("worker_exit"))
        assert signal.SIGUSR2 not in signals(harness)

    play(tmp_path, scenario)
