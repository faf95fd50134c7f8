from __future__ import annotations

import asyncio
import os
import resource
from pathlib import Path

import pytest

from controller_double import ControllerHarness
from mmsup.supervisor.instances import recycle_policy
from mmsup.supervisor.instances.recycle_policy import PERIOD_S, REFUSALS, RefusalCounter, WorkerUsage, recycle_reason
from mmsup.supervisor.models.recycling import open_files


@pytest.mark.parametrize(
    ("used", "recycle_bytes", "reason"),
    [
        (WorkerUsage(memory_bytes=201, initial_bytes=100), 200, "rss"),
        (WorkerUsage(memory_bytes=200, initial_bytes=100), 200, ""),
        (WorkerUsage(memory_bytes=900, initial_bytes=100), None, ""),
        (WorkerUsage(memory_bytes=300, initial_bytes=290), 200, ""),  # started above its limit
        (WorkerUsage(memory_bytes=320, initial_bytes=290), 200, "rss"),
        (WorkerUsage(files=3072, files_limit=4096), None, "files"),
        (WorkerUsage(files=3071, files_limit=4096), None, ""),
        (WorkerUsage(refusals=REFUSALS, served_s=PERIOD_S + 1), None, "gpu_oom"),
        (WorkerUsage(refusals=REFUSALS - 1, served_s=PERIOD_S + 1), None, ""),
        (WorkerUsage(refusals=REFUSALS, served_s=PERIOD_S), None, ""),  # never had room, as a fresh one would not
        (WorkerUsage(), 200, ""),
        (WorkerUsage(memory_bytes=181, initial_bytes=100, cap_bytes=200, served_s=PERIOD_S + 1), None, "rss"),
        (WorkerUsage(memory_bytes=180, initial_bytes=100, cap_bytes=200, served_s=PERIOD_S + 1), None, ""),
        (WorkerUsage(memory_bytes=181, initial_bytes=100, cap_bytes=200, served_s=PERIOD_S), None, ""),
        (WorkerUsage(memory_bytes=181, initial_bytes=170, cap_bytes=200, served_s=PERIOD_S + 1), None, ""),
        (WorkerUsage(memory_bytes=181, initial_bytes=100, cap_bytes=200, served_s=PERIOD_S + 1), 190, ""),  # its own
        (WorkerUsage(120, 100, cap_bytes=200, limited_bytes=181, served_s=PERIOD_S + 1), None, "rss"),
        (WorkerUsage(105, 100, cap_bytes=200, limited_bytes=181, served_s=PERIOD_S + 1), None, ""),
    ],
)
def test_a_worker_is_recycled_for_growth_beyond_its_limit_descriptors_or_refusals(
    used: WorkerUsage, recycle_bytes: int | None, reason: str
) -> None:
    assert recycle_reason(used, recycle_bytes) == reason


def test_refusals_count_from_the_first_reading_on_and_for_the_period_only() -> None:
    counter = RefusalCounter()
    assert counter.record(40, 0.0) == 0  # may be of an earlier controller's time
    assert counter.record(42, 1.0) == 2
    assert counter.record(42, 2.0) == 2
    assert counter.record(44, 200.0) == 4
    assert counter.record(44, PERIOD_S + 1.0) == 2
    assert counter.record(1000, 400.0) == REFUSALS
    assert counter.record(1000, 400.0 + PERIOD_S) == 0


@pytest.mark.slow
@pytest.mark.fault("F18")
def test_a_worker_that_keeps_refusing_for_lack_of_device_memory_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recycle_policy, "PERIOD_S", 1.0)

    async def play() -> None:
        async with asyncio.timeout(60), ControllerHarness(tmp_path, ("m",)) as harness:
            await harness.until(lambda: harness.state("m") == "ready")
            (child,) = harness.keeper.workers()
            while not harness.events("recycle"):  # when it is sampled cannot be observed
                child.page.request_refused()
                await asyncio.sleep(0.01)
            (event,) = harness.events("recycle", "m")
            assert event["reason"] == "gpu_oom"
            assert event["text"].startswith("5 requests found no device memory within 1 s: another takes its place")
            await harness.until(lambda: harness.keeper.workers() and harness.keeper.workers() != [child])
            await harness.until(lambda: len(harness.keeper.workers()) == 1 and harness.state("m") == "ready")
            assert harness.keeper.workers() != [child]
            assert not harness.events("worker_exit")

    asyncio.run(play())


def test_the_descriptors_of_a_process_are_counted() -> None:
    before, limit = open_files(os.getpid())
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(10)]
    assert open_files(os.getpid())[0] == before + 10
    for each in held:
        os.close(each)
    assert limit == resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def test_a_process_that_is_gone_has_none() -> None:
    assert open_files(2**22 + 1) == (0, 0)
