"""One worker made anew among played children: beside the old one, in its place, or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from controller_double import ControllerHarness, add_model, fail_to_load
from mmsup.ipc.messages.gateway_control import LinkWorker, UnlinkWorker
from mmsup.ipc.messages.handshake import WIRE_VERSION, Hello
from mmsup.ipc.messages.worker_control import ConfigureWorker, LoadFailed
from mmsup.supervisor.capacity.admission import Pool, RoomRequest
from mmsup.supervisor.capacity.budget import MemoryBudgets
from mmsup.supervisor.capacity.footprint_meter import FootprintMeter
from mmsup.supervisor.capacity.footprint_store import FootprintStore
from mmsup.supervisor.capacity.memory_accounts import MemoryAccounts
from mmsup.supervisor.capacity.memory_admission import MemoryAdmission
from mmsup.supervisor.instances.instance import Instance
from mmsup.supervisor.instances.lifecycle_events import InstanceState


class NoEviction:
    counts: Mapping[str, int] = MappingProxyType({})

    def is_evictable(self, _instance: Instance) -> bool:
        return False

    def evictable_bytes(self, _request: RoomRequest) -> int:
        return 0

    def keep_reserve(self, _request: RoomRequest, _pool: Pool, _left_bytes: int) -> int:
        return 0

    def make_room(self, _request: RoomRequest, _missing_bytes: int) -> int:
        return 0


class Space(MemoryAdmission):
    """As much memory as a test says; each worker takes a GiB."""

    def __init__(self, available: int = 1 << 40) -> None:
        meter = FootprintMeter(FootprintStore(Path("/nowhere")), lambda _: "", lambda write, contents: None)
        super().__init__(MemoryAccounts(MemoryBudgets(1 << 50), list, meter, lambda _: None, NoEviction(), list))
        self._available = available

    def available_bytes(self) -> int:
        return self._available

    def required_bytes(self, instance: Instance) -> int | None:
        return 1 << 30


def run_in_harness(home: Path, instances: int, play: Callable[[ControllerHarness, Instance], Awaitable[None]]) -> None:
    add_model(home, "m", yaml=f"instances: {instances}\n")

    async def run() -> None:
        async with asyncio.timeout(60), ControllerHarness(home, ()) as harness:
            await harness.until(lambda: len(ready(harness)) == instances)
            await play(harness, ready(harness)[0])

    asyncio.run(run())


def ready(harness: ControllerHarness) -> list[Instance]:
    """Instances of the model that serve."""
    return [each for each in harness.controller.models.model_set.instances() if each.state is InstanceState.READY]


def renewing(harness: ControllerHarness, old: Instance, space: Space) -> asyncio.Task[str]:
    harness.controller.models.model_set.memory = space
    work: Any = harness.controller.models.replacement.replace(old)  # a coroutine
    return asyncio.get_running_loop().create_task(work)


@pytest.mark.slow
def test_the_new_one_is_linked_before_the_old_one_is_unlinked(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness, old: Instance) -> None:
        assert await renewing(harness, old, Space()) == ""
        (new,) = ready(harness)
        assert new.id != old.id
        received = [
            (type(each), each.instance)
            for each in harness.gateway().received
            if isinstance(each, LinkWorker | UnlinkWorker)
        ]
        assert received == [
            (LinkWorker, old.id),
            (LinkWorker, new.id),
            (UnlinkWorker, old.id),
        ]
        assert new.revision in harness.controller.models.model_set.models["m"].active.versions  # type: ignore[union-attr]  # it serves
        assert len(harness.controller.models.model_set.models["m"].revisions) == 1
        assert not harness.events("worker_exit")

    run_in_harness(tmp_path, 1, play)


@pytest.mark.slow
def test_a_worker_whose_replacement_fails_stays_and_nothing_is_counted_against_its_model(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness, old: Instance) -> None:
        harness.keeper.script = fail_to_load
        assert await renewing(harness, old, Space()) == "the artefact is broken"
        await harness.until(lambda: len(list(harness.controller.models.model_set.instances())) == 1)
        assert ready(harness) == [old]
        assert old.revision.exits == []
        assert harness.controller.models.model_set.models["m"].reason() == ""

    run_in_harness(tmp_path, 1, play)


@pytest.mark.slow
def test_without_room_for_both_the_worker_is_restarted_in_place(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness, old: Instance) -> None:
        assert await renewing(harness, old, Space(0)) == ""
        assert (old.state, old.generation) == (InstanceState.READY, 2)
        assert len(ready(harness)) == 2
        assert not harness.events("worker_exit")

    run_in_harness(tmp_path, 2, play)


@pytest.mark.slow
def test_without_room_for_both_the_only_one_stays(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness, old: Instance) -> None:
        why = await renewing(harness, old, Space(0))
        assert why == "another 1GiB is not free on this machine; it is the only one that serves this model"
        assert (ready(harness), old.generation) == ([old], 1)

    run_in_harness(tmp_path, 1, play)


@pytest.mark.slow
@pytest.mark.parametrize("instances", [1, 2])
def test_after_a_replacement_that_does_not_fit_the_worker_is_restarted_only_where_another_serves(
    tmp_path: Path, instances: int
) -> None:
    def unfit(child: Any) -> None:  # a child of the double
        child.send(Hello("worker", WIRE_VERSION, *child.life))
        child.send(LoadFailed("does_not_fit", "the device is full"))
        child.process.kill()
        parts["keeper"].script = type(child).serve

    parts: dict[str, Any] = {}

    async def play(harness: ControllerHarness, old: Instance) -> None:
        parts["keeper"] = harness.keeper
        harness.keeper.script = unfit
        why = await renewing(harness, old, Space())
        if instances == 1:
            assert why == "the device is full; it is the only one that serves this model"
            assert (ready(harness), old.generation) == ([old], 1)
        else:
            assert why == ""
            assert old.generation == 2
            assert len(ready(harness)) == 2

    run_in_harness(tmp_path, instances, play)


@pytest.mark.slow
def test_a_model_unloaded_meanwhile_has_no_replacement(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness, old: Instance) -> None:
        harness.keeper.script = lambda _: None
        renewal = renewing(harness, old, Space())
        await harness.until(lambda: len(harness.keeper.workers()) == 2)
        await harness.controller.models.loader.unload("m")
        assert await renewal == ""
        await harness.until(lambda: not harness.keeper.workers())

    run_in_harness(tmp_path, 1, play)


@pytest.mark.slow
def test_a_model_reloaded_meanwhile_needs_no_replacement(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness, old: Instance) -> None:
        harness.keeper.script = lambda _: None
        renewal = renewing(harness, old, Space())
        await harness.until(lambda: len(harness.keeper.workers()) == 2)
        harness.keeper.script = type(harness.gateway()).serve
        await harness.controller.models.loader.load("m")
        assert await renewal == ""
        await harness.until(lambda: len(harness.keeper.workers()) == 1)
        assert ready(harness)[0].id not in (old.id, old.id + 1)

    run_in_harness(tmp_path, 1, play)


@pytest.mark.slow
def test_without_room_beside_another_replacement_one_waits_until_that_is_done(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness, old: Instance) -> None:
        other = next(each for each in ready(harness) if each is not old)
        harness.keeper.script = lambda _: None
        first = renewing(harness, old, Space((1 << 30) + (1 << 29)))  # room for one
        await harness.until(
            lambda: len(harness.keeper.workers()) == 3 and harness.keeper.workers()[-1].received_of(ConfigureWorker)
        )
        second = renewing(harness, other, Space((1 << 30) + (1 << 29)))
        new = harness.keeper.workers()[-1]
        harness.keeper.script = type(new).serve
        new.serve()
        assert [await first, await second] == ["", ""]
        assert old.state is other.state is InstanceState.STOPPED  # nobody went first
        assert (old.generation, other.generation, len(ready(harness))) == (1, 1, 2)
        received = [each for each in harness.gateway().received if isinstance(each, LinkWorker | UnlinkWorker)]
        assert [type(each) for each in received[2:]] == [LinkWorker, UnlinkWorker] * 2

    run_in_harness(tmp_path, 2, play)


@pytest.mark.slow
def test_without_any_room_one_worker_at_a_time_is_restarted(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness, old: Instance) -> None:
        everybody = ready(harness)
        fewest = len(everybody)

        def serving() -> bool:
            nonlocal fewest
            fewest = min(fewest, len(ready(harness)))
            return all(each.done() for each in tasks)

        tasks = [renewing(harness, each, Space(0)) for each in everybody]
        await harness.until(serving)
        assert [each.result() for each in tasks] == [""] * 3
        assert [each.generation for each in everybody] == [2] * 3
        assert fewest == 2

    run_in_harness(tmp_path, 3, play)


@pytest.mark.slow
def test_one_that_is_being_replaced_is_not_replaced_twice(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness, old: Instance) -> None:
        tasks = [renewing(harness, old, Space()) for _ in range(2)]
        assert [await each for each in tasks] == ["", ""]
        assert len(ready(harness)) == 1
        assert len(harness.keeper.children) == 3  # a gateway and two workers: there was one new

    run_in_harness(tmp_path, 1, play)


@pytest.mark.slow
def test_one_that_was_restarted_meanwhile_needs_no_replacement(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness, old: Instance) -> None:
        harness.keeper.script = lambda _: None
        renewal = renewing(harness, old, Space())
        await harness.until(lambda: len(harness.keeper.workers()) == 2)
        before, new = harness.keeper.workers()
        await harness.until(lambda: new.received_of(ConfigureWorker))
        harness.keeper.script = type(new).serve
        before.process.kill()
        assert await renewal == ""
        assert (ready(harness), old.generation) == ([old], 2)
        await harness.until(lambda: len(harness.keeper.workers()) == 1)

    run_in_harness(tmp_path, 1, play)
