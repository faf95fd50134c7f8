"""Worn workers among played children: renewed once, or left alone for a while."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from controller_double import ControllerHarness, add_model, fail_to_load
from mmsup.supervisor.instances import memory_sampler
from mmsup.supervisor.instances.instance import Instance
from mmsup.supervisor.instances.lifecycle_events import InstanceState
from mmsup.supervisor.instances.recycle_policy import WorkerUsage
from mmsup.supervisor.models import recycling
from mmsup.supervisor.processes import usage

pytestmark = pytest.mark.slow

WORN = WorkerUsage(300, 100)
LIMIT = "recycle_memory: 16MiB\n"


def run_in_harness(
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    play: Callable[[ControllerHarness, Instance, list[WorkerUsage]], Awaitable[None]],
) -> None:
    """`play` says what the first worker holds; who follows holds nothing."""
    add_model(home, "m", yaml=LIMIT)
    monkeypatch.setattr(memory_sampler, "EVERY_S", 0.01)
    monkeypatch.setattr(
        "mmsup.supervisor.instances.recycle_policy.recycle_reason", lambda reading, _: "rss" if reading == WORN else ""
    )

    async def run() -> None:
        async with asyncio.timeout(60), ControllerHarness(home, ()) as harness:
            held = [WorkerUsage()]
            await harness.until(lambda: harness.state("m") == "ready")
            (old,) = harness.controller.models.model_set.instances()
            first = old.worker

            def read(tenure: object, cap_bytes: int, *, counts_memory: bool) -> WorkerUsage:
                assert counts_memory
                return held[-1] if tenure is first else WorkerUsage()

            def sample(_: int) -> int:
                harness.controller.context.change_signal.set()
                return 1

            monkeypatch.setattr(usage, "resident_bytes", sample)
            monkeypatch.setattr(recycling, "read_usage", read)
            await play(harness, old, held)

    asyncio.run(run())


def seen_again(instance: Instance) -> Callable[[], bool]:
    """Whether it has been looked at five times from now on."""
    assert instance.worker is not None
    curve = instance.worker.memory_history
    had = len(curve.rows(0.0))
    return lambda: len(curve.rows(0.0)) >= had + 5


def test_a_worker_at_its_limit_is_replaced_with_one_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(harness: ControllerHarness, old: Instance, held: list[WorkerUsage]) -> None:
        held.append(WORN)
        await harness.until(lambda: harness.controller.models.model_set.instance(old.id) is None)
        (new,) = harness.controller.models.model_set.instances()
        assert (new.state, new.id == old.id) == (InstanceState.READY, False)
        (event,) = harness.events("recycle")
        assert (event["instance"], event["reason"]) == (old.id, "rss")
        assert event["text"] == "it holds 300B, and held 100B at first: another takes its place"
        assert not harness.events("worker_exit")

    run_in_harness(tmp_path, monkeypatch, play)


def test_a_worker_that_could_not_be_replaced_stays_and_is_tried_again_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play(harness: ControllerHarness, old: Instance, held: list[WorkerUsage]) -> None:
        harness.keeper.script = fail_to_load
        held.append(WORN)
        await harness.until(lambda: harness.events("recycle_failed"))
        (event,) = harness.events("recycle_failed")
        assert (event["instance"], event["text"]) == (old.id, "it stays: the artefact is broken")
        assert old.state is InstanceState.READY
        await harness.until(seen_again(old))
        assert len(harness.events("recycle")) == 1
        assert old.worker is not None
        harness.keeper.script = type(harness.gateway()).serve
        old.worker.recycling.not_before_s = 0.0
        await harness.until(lambda: old.state is InstanceState.STOPPED)

    run_in_harness(tmp_path, monkeypatch, play)


def test_no_worker_is_recycled_while_its_model_is_being_reloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play(harness: ControllerHarness, old: Instance, held: list[WorkerUsage]) -> None:
        harness.keeper.script = lambda _: None
        load = asyncio.get_running_loop().create_task(harness.controller.models.loader.load("m"))
        await harness.until(lambda: len(harness.keeper.workers()) == 2)
        held.append(WORN)
        await harness.until(seen_again(old))
        assert not harness.events("recycle")
        load.cancel()

    run_in_harness(tmp_path, monkeypatch, play)
