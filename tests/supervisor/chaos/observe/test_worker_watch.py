"""Workers that answered are watched: the kernel's word of their end is written down, and nobody else is signalled."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys

import pytest

from mmsup.supervisor.chaos.observe.history import Death, History, Outcome
from mmsup.supervisor.chaos.observe.worker_watch import Lives

pytestmark = pytest.mark.slow


def process() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)


def answer(pid: int) -> Outcome:
    return Outcome(0.0, 1, "right", 200, pid=pid)


def test_a_death_is_written_down_and_the_next_life_takes_the_place() -> None:
    async def watch() -> History:
        history = History()
        lives = Lives(history)
        with process() as first, process() as second:
            lives.seen("m", answer(first.pid))
            lives.seen("m", answer(first.pid))
            assert lives.pid("m") == first.pid
            replaced = asyncio.ensure_future(lives.replaced("m", first.pid, 30.0))
            assert lives.send("m", signal.SIGKILL)
            await asyncio.to_thread(first.wait)
            for _ in range(2):  # the loop takes a turn to hear it
                await asyncio.sleep(0)
            assert lives.pid("m") == 0
            assert not lives.send("m", signal.SIGKILL)
            lives.seen("m", answer(first.pid))  # its last answer, read after its end
            assert lives.pid("m") == 0
            assert not replaced.done()
            lives.seen("m", answer(second.pid))
            await replaced
            assert lives.pid("m") == second.pid
            second.communicate(b"")
            first.communicate(b"")
        lives.close()
        return history

    (death,) = asyncio.run(watch()).records[:1]
    assert isinstance(death, Death)
    assert death.model == "m"


def test_a_pid_that_is_gone_or_was_not_told_is_not_watched() -> None:
    with process() as ended:
        ended.communicate(b"")
    history = History()

    async def watch() -> None:
        lives = Lives(history)
        lives.seen("m", answer(ended.pid))
        lives.seen("m", answer(0))
        assert lives.pid("m") == 0
        await lives.replaced("m", 0, 0.01)
        lives.close()

    asyncio.run(watch())
    assert history.records == []
