"""Workers that have answered are watched by pidfd: their deaths are recorded, and only they are signalled."""

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


def test_a_death_is_recorded_and_the_next_worker_takes_its_place() -> None:
    async def watch() -> History:
        history = History()
        watch = WorkerWatch(history)
        with process() as first, process() as second:
            watch.on_answer("m", answer(first.pid))
            watch.on_answer("m", answer(first.pid))
            assert watch.pid("m") == first.pid
            replaced = asyncio.ensure_future(watch.wait_replaced("m", first.pid, 30.0))
            assert watch.send_signal("m", signal.SIGKILL)
            await asyncio.to_thread(first.wait)
            for _ in range(2):  # the loop takes a turn to hear it
                await asyncio.sleep(0)
            assert watch.pid("m") == 0
            assert not watch.send_signal("m", signal.SIGKILL)
            watch.on_answer("m", answer(first.pid))  # its last answer, read after its end
            assert watch.pid("m") == 0
            assert not replaced.done()
            watch.on_answer("m", answer(second.pid))
            await replaced
            assert watch.pid("m") == second.pid
            second.communicate(b"")
            first.communicate(b"")
        watch.close()
        return history

    (death,) = asyncio.run(watch()).records[:1]
    assert isinstance(death, WorkerDeath)
    assert death.model == "m"


def test_a_pid_that_is_gone_or_unknown_is_not_watched() -> None:
    with process() as ended:
        ended.communicate(b"")
    history = History()

    async def watch() -> None:
        watch = WorkerWatch(history)
        watch.on_answer("m", answer(ended.pid))
        watch.on_answer("m", answer(0))
        assert watch.pid("m") == 0
        await watch.wait_replaced("m", 0, 0.01)
        watch.close()

    asyncio.run(watch())
    assert history.records == []
