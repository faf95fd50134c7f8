from __future__ import annotations

import asyncio
import threading

import pytest

from mmsup.supervisor.postmortem import disk_thread
from mmsup.supervisor.postmortem.disk_thread import DiskThread


def test_jobs_run_in_order_and_beyond_the_limit_none_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_thread, "MAX_JOBS", 2)

    async def run() -> None:
        thread, gate, done = DiskThread(), threading.Event(), list[int]()
        first, second = thread.submit(gate.wait), thread.submit(done.append, 1)
        assert first is not None
        assert second is not None
        assert thread.submit(done.append, 2) is None
        gate.set()
        await asyncio.wrap_future(second)
        third = thread.submit(done.append, 3)
        assert third is not None
        await asyncio.wrap_future(third)
        assert done == [1, 3]
        thread.close()

    asyncio.run(run())


def test_a_job_that_ends_after_the_loop_is_no_error() -> None:
    gate = threading.Event()

    async def run() -> DiskThread:
        thread = DiskThread()
        assert thread.submit(gate.wait) is not None
        return thread

    thread = asyncio.run(run())
    gate.set()
    thread.close()
