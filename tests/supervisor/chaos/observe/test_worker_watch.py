"""Workers that answered are watched: the kernel's word of their end is written down, and nobody else is signalled."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys

import pytest

from mmsup.supervisor.chaos.observe.history import History, RequestOutcome, WorkerDeath
from mmsup.supervisor.chaos.observe.worker_watch import WorkerWatch

pytestmark = pytest.mark.slow


def process() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)


def answer(pid: int) -> RequestOutcome:
    return RequestOutcome(0.0, 1, "right", 200, pid=pid)


def test_a_death_is_written_down_and_the_next_life_takes_the_place() -> None:
    async def watch() -> History:
        history = History()
        lives = WorkerWatch(history)
        with process() as first, process() as second:
            lives.on_answer("m", answer(first.pid))
            lives.on_answer("m", answer(first.pid))
            assert lives.pid("m") == first.pid
            replaced = asyncio.ensure_future(lives.wait_replaced("m", first.pid, 30.0))
            assert lives.send_signal("m", signal.SIGKILL)
            await asyncio.to_thread(first.wait)
            for _ in range(2):  # the loop takes a turn to hear it
                await asyncio.sleep(0)
            assert lives.pid("m") == 0
            assert not lives.send_signal("m", signal.SIGKILL)
            lives.on_answer("m", answer(first.pid))  # its last answer, read after its end
            assert lives.pid("m") == 0
            assert not replaced.done()
            lives.on_answer("m", answer(second.pid))
            await replaced
            assert lives.pid("m") == second.pid
            second.communicate(b"")
            first.communicate(b"")
        lives.close()
        return history

    (death,) = asyncio.run(watch()).records[:1]
    assert isinstance(death, WorkerDeath)
    assert death.model == "m"


def test_a_pid_that_is_gone_or_was_not_told_is_not_watched() -> None:
    with process() as ended:
        ended.communicate(b"")
    history = History()

    async def watch() -> None:
        lives = WorkerWatch(history)
        lives.on_answer("m", answer(ended.pid))
        lives.on_answer("m", answer(0))
        assert lives.pid("m") == 0
        await lives.wait_replaced("m", 0, 0.01)
        lives.close()

    asyncio.run(watch())
    assert history.records == []
