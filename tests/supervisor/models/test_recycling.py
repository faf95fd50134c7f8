"""Worn workers among played children: renewed once, or left alone for a while."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from brain_double import ControllerHarness, add_model, fail_to_load
from mmsup.supervisor.instances import memory_sampler
from mmsup.supervisor.instances.instance import Instance
from mmsup.supervisor.instances.lifecycle_events import InstanceState
from mmsup.supervisor.instances.recycle_policy import WorkerUsage
from mmsup.supervisor.models import recycling
from mmsup.supervisor.processes import usage

pytestmark = pytest.mark.slow

WORN = WorkerUsage(300, 100)
LIMIT = "recycle_memory: 16MiB\n"


def in_house(
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
        async with asyncio.timeout(60), ControllerHarness(home, ()) as house:
            held = [WorkerUsage()]
            await house.until(lambda: house.state("m") == "ready")
            (old,) = house.controller.model_set.instances()
            first = old.worker

            def read(tenure: object, *, counts_memory: bool) -> WorkerUsage:
                assert counts_memory
                return held[-1] if tenure is first else WorkerUsage()

            def sample(_: int) -> int:
                house.controller.change_signal.set()
                return 1

            monkeypatch.setattr(usage, "resident_bytes", sample)
            monkeypatch.setattr(recycling, "read_usage", read)
            await play(house, old, held)

    asyncio.run(run())


def seen_again(instance: Instance) -> Callable[[], bool]:
    """Whether it has been looked at five times from now on."""
    assert instance.worker is not None
    curve = instance.worker.memory_history
    had = len(curve.rows(0.0))
    return lambda: len(curve.rows(0.0)) >= had + 5


def test_one_that_is_worn_is_followed_and_said_so_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(house: ControllerHarness, old: Instance, held: list[WorkerUsage]) -> None:
        held.append(WORN)
        await house.until(lambda: house.controller.model_set.instance(old.id) is None)
        (new,) = house.controller.model_set.instances()
        assert (new.state, new.id == old.id) == (InstanceState.READY, False)
        (event,) = house.events("recycle")
        assert (event["instance"], event["reason"]) == (old.id, "rss")
        assert event["text"] == "it holds 300B, and held 100B at first: another takes its place"
        assert not house.events("worker_exit")

    in_house(tmp_path, monkeypatch, play)


def test_one_that_could_not_be_followed_stays_and_is_tried_again_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play(house: ControllerHarness, old: Instance, held: list[WorkerUsage]) -> None:
        house.keeper.script = fail_to_load
        held.append(WORN)
        await house.until(lambda: house.events("recycle_failed"))
        (event,) = house.events("recycle_failed")
        assert (event["instance"], event["text"]) == (old.id, "it stays: the artefact is broken")
        assert old.state is InstanceState.READY
        await house.until(seen_again(old))
        assert len(house.events("recycle")) == 1
        assert old.worker is not None
        house.keeper.script = type(house.gateway()).serve
        old.worker.recycle_at_s = 0.0
        await house.until(lambda: old.state is InstanceState.STOPPED)

    in_house(tmp_path, monkeypatch, play)


def test_nobody_is_recycled_while_its_model_is_being_loaded_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play(house: ControllerHarness, old: Instance, held: list[WorkerUsage]) -> None:
        house.keeper.script = lambda _: None
        load = asyncio.get_running_loop().create_task(house.controller.loader.load("m"))
        await house.until(lambda: len(house.keeper.workers()) == 2)
        held.append(WORN)
        await house.until(seen_again(old))
        assert not house.events("recycle")
        load.cancel()

    in_house(tmp_path, monkeypatch, play)
