"""One worker made anew among played children: beside the old one, in its place, or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from brain_double import ControllerHarness, add_model, fail_to_load
from mmsup.ipc.messages.gateway_control import LinkWorker, UnlinkWorker
from mmsup.ipc.messages.handshake import WIRE_VERSION, Hello
from mmsup.ipc.messages.worker_control import ConfigureWorker, LoadFailed
from mmsup.supervisor.instances.instance import Instance
from mmsup.supervisor.instances.lifecycle_events import InstanceState
from mmsup.supervisor.models.memory_headroom import MemoryHeadroom


class Space(MemoryHeadroom):
    """As much memory as a test says; each worker takes a GiB."""

    def __init__(self, available: int = 1 << 40) -> None:
        self._available = available

    def available_bytes(self) -> int:
        return self._available

    def needs_bytes(self, instance: Instance) -> int | None:
        return 1 << 30


def in_house(home: Path, instances: int, play: Callable[[ControllerHarness, Instance], Awaitable[None]]) -> None:
    add_model(home, "m", yaml=f"instances: {instances}\n")

    async def run() -> None:
        async with asyncio.timeout(60), ControllerHarness(home, ()) as house:
            await house.until(lambda: len(ready(house)) == instances)
            await play(house, ready(house)[0])

    asyncio.run(run())


def ready(house: ControllerHarness) -> list[Instance]:
    """Instances of the model that serve."""
    return [each for each in house.controller.model_set.instances() if each.state is InstanceState.READY]


def renewing(house: ControllerHarness, old: Instance, space: Space) -> asyncio.Task[str]:
    house.controller.model_set.memory_headroom = space
    work: Any = house.controller.rolling_replacement.replace(old)  # a coroutine
    return asyncio.get_running_loop().create_task(work)


@pytest.mark.slow
def test_the_new_one_is_linked_before_the_old_one_is_unlinked(tmp_path: Path) -> None:
    async def play(house: ControllerHarness, old: Instance) -> None:
        assert await renewing(house, old, Space()) == ""
        (new,) = ready(house)
        assert new.id != old.id
        heard = [
            (type(each), each.instance)
            for each in house.gateway().received
            if isinstance(each, LinkWorker | UnlinkWorker)
        ]
        assert heard == [
            (LinkWorker, old.id),
            (LinkWorker, new.id),
            (UnlinkWorker, old.id),
        ]
        assert new.revision in house.controller.model_set.models["m"].active.versions  # type: ignore[union-attr]  # it serves
        assert len(house.controller.model_set.models["m"].revisions) == 1
        assert not house.events("worker_exit")

    in_house(tmp_path, 1, play)


@pytest.mark.slow
def test_one_whose_successor_fails_stays_and_nothing_is_held_against_its_model(tmp_path: Path) -> None:
    async def play(house: ControllerHarness, old: Instance) -> None:
        house.keeper.script = fail_to_load
        assert await renewing(house, old, Space()) == "the artefact is broken"
        await house.until(lambda: len(list(house.controller.model_set.instances())) == 1)
        assert ready(house) == [old]
        assert old.revision.exits == []
        assert house.controller.model_set.models["m"].reason() == ""

    in_house(tmp_path, 1, play)


@pytest.mark.slow
def test_without_room_for_both_the_next_life_follows_in_the_same_place(tmp_path: Path) -> None:
    async def play(house: ControllerHarness, old: Instance) -> None:
        assert await renewing(house, old, Space(0)) == ""
        assert (old.state, old.generation) == (InstanceState.READY, 2)
        assert len(ready(house)) == 2
        assert not house.events("worker_exit")

    in_house(tmp_path, 2, play)


@pytest.mark.slow
def test_without_room_for_both_the_only_one_stays(tmp_path: Path) -> None:
    async def play(house: ControllerHarness, old: Instance) -> None:
        why = await renewing(house, old, Space(0))
        assert why == "another 1GiB is not free on this machine; it is the only one that serves this model"
        assert (ready(house), old.generation) == ([old], 1)

    in_house(tmp_path, 1, play)


@pytest.mark.slow
@pytest.mark.parametrize("instances", [1, 2])
def test_a_successor_that_says_it_does_not_fit_is_followed_in_place_only_where_another_serves(
    tmp_path: Path, instances: int
) -> None:
    def unfit(child: Any) -> None:  # a child of the double
        child.say(Hello("worker", WIRE_VERSION, *child.life))
        child.say(LoadFailed("does_not_fit", "the device is full"))
        child.process.kill()
        house_of["keeper"].script = type(child).serve

    house_of: dict[str, Any] = {}

    async def play(house: ControllerHarness, old: Instance) -> None:
        house_of["keeper"] = house.keeper
        house.keeper.script = unfit
        why = await renewing(house, old, Space())
        if instances == 1:
            assert why == "the device is full; it is the only one that serves this model"
            assert (ready(house), old.generation) == ([old], 1)
        else:
            assert why == ""
            assert old.generation == 2
            assert len(ready(house)) == 2

    in_house(tmp_path, instances, play)


@pytest.mark.slow
def test_a_model_unloaded_meanwhile_has_no_successor(tmp_path: Path) -> None:
    async def play(house: ControllerHarness, old: Instance) -> None:
        house.keeper.script = lambda _: None
        renewal = renewing(house, old, Space())
        await house.until(lambda: len(house.keeper.workers()) == 2)
        await house.controller.loader.unload("m")
        assert await renewal == ""
        await house.until(lambda: not house.keeper.workers())

    in_house(tmp_path, 1, play)


@pytest.mark.slow
def test_a_model_loaded_anew_meanwhile_is_new_already(tmp_path: Path) -> None:
    async def play(house: ControllerHarness, old: Instance) -> None:
        house.keeper.script = lambda _: None
        renewal = renewing(house, old, Space())
        await house.until(lambda: len(house.keeper.workers()) == 2)
        house.keeper.script = type(house.gateway()).serve
        await house.controller.loader.load("m")
        assert await renewal == ""
        await house.until(lambda: len(house.keeper.workers()) == 1)
        assert ready(house)[0].id not in (old.id, old.id + 1)

    in_house(tmp_path, 1, play)


@pytest.mark.slow
def test_who_has_no_room_beside_a_twin_waits_until_it_is_there_and_the_old_one_gone(tmp_path: Path) -> None:
    async def play(house: ControllerHarness, old: Instance) -> None:
        other = next(each for each in ready(house) if each is not old)
        house.keeper.script = lambda _: None
        first = renewing(house, old, Space((1 << 30) + (1 << 29)))  # room for one
        await house.until(
            lambda: len(house.keeper.workers()) == 3 and house.keeper.workers()[-1].received_of(ConfigureWorker)
        )
        second = renewing(house, other, Space((1 << 30) + (1 << 29)))
        twin = house.keeper.workers()[-1]
        house.keeper.script = type(twin).serve
        twin.serve()
        assert [await first, await second] == ["", ""]
        assert old.state is other.state is InstanceState.STOPPED  # nobody went first
        assert (old.generation, other.generation, len(ready(house))) == (1, 1, 2)
        heard = [each for each in house.gateway().received if isinstance(each, LinkWorker | UnlinkWorker)]
        assert [type(each) for each in heard[2:]] == [LinkWorker, UnlinkWorker] * 2

    in_house(tmp_path, 2, play)


@pytest.mark.slow
def test_without_any_room_only_one_at_a_time_goes_first(tmp_path: Path) -> None:
    async def play(house: ControllerHarness, old: Instance) -> None:
        everybody = ready(house)
        fewest = len(everybody)

        def serving() -> bool:
            nonlocal fewest
            fewest = min(fewest, len(ready(house)))
            return all(each.done() for each in tasks)

        tasks = [renewing(house, each, Space(0)) for each in everybody]
        await house.until(serving)
        assert [each.result() for each in tasks] == [""] * 3
        assert [each.generation for each in everybody] == [2] * 3
        assert fewest == 2

    in_house(tmp_path, 3, play)


@pytest.mark.slow
def test_one_that_is_being_renewed_is_not_renewed_twice(tmp_path: Path) -> None:
    async def play(house: ControllerHarness, old: Instance) -> None:
        tasks = [renewing(house, old, Space()) for _ in range(2)]
        assert [await each for each in tasks] == ["", ""]
        assert len(ready(house)) == 1
        assert len(house.keeper.children) == 3  # a gateway and two workers: there was one twin

    in_house(tmp_path, 1, play)


@pytest.mark.slow
def test_one_that_came_back_by_itself_needs_no_twin_any_more(tmp_path: Path) -> None:
    async def play(house: ControllerHarness, old: Instance) -> None:
        house.keeper.script = lambda _: None
        renewal = renewing(house, old, Space())
        await house.until(lambda: len(house.keeper.workers()) == 2)
        before, twin = house.keeper.workers()
        await house.until(lambda: twin.received_of(ConfigureWorker))
        house.keeper.script = type(twin).serve
        before.process.kill()
        assert await renewal == ""
        assert (ready(house), old.generation) == ([old], 2)
        await house.until(lambda: len(house.keeper.workers()) == 1)

    in_house(tmp_path, 1, play)
