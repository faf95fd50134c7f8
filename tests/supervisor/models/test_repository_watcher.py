"""What a look at the repositories moves, and what it leaves where it is."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from brain_double import Child, ControllerHarness, add_model, fail_to_load
from mmsup.ipc.messages.gateway_control import Unroute
from mmsup.supervisor.repository import scanner

pytestmark = pytest.mark.slow


def in_house(
    home: Path,
    play: Callable[[ControllerHarness], Awaitable[None]],
    models: tuple[str, ...] = ("good",),
    mode: str = "none",
) -> None:
    async def run() -> None:
        async with asyncio.timeout(60), ControllerHarness(home, models, control_mode=mode, poll_s=3600.0) as house:
            await play(house)

    asyncio.run(run())


def is_ready(house: ControllerHarness, *names: str) -> Callable[[], bool]:
    return lambda: all(house.state(name) == "ready" for name in names)


async def look(house: ControllerHarness) -> None:
    """As a poll does, from beginning to end."""
    await house.controller.repository_watcher.check()  # SIGHUP would not say when it is through


@pytest.mark.parametrize("mode", ["none", "poll"])
def test_models_of_a_repository_that_cannot_be_read_stay_untouched_until_it_can(tmp_path: Path, mode: str) -> None:
    async def play(house: ControllerHarness) -> None:
        await house.until(is_ready(house, "a", "b"))
        (tmp_path / "repo").rename(tmp_path / "away")
        for _ in range(2):
            await look(house)
        assert house.controller.model_set.model("a") is not None
        (event,) = house.events("repository_lost")
        assert str(tmp_path / "repo") in event["text"]
        (tmp_path / "away").rename(tmp_path / "repo")
        for _ in range(2):
            await look(house)
        assert len(house.events("repository_back")) == 1
        assert is_ready(house, "a", "b")()
        assert len(house.events("worker_spawn")) == 2
        assert not house.events("model_unloaded")

    in_house(tmp_path, play, ("a", "b"), mode)


def test_what_a_lost_repository_could_not_start_is_tried_again_when_it_is_back(tmp_path: Path) -> None:
    async def play(house: ControllerHarness) -> None:
        await house.until(is_ready(house, "good"))
        (tmp_path / "repo").rename(tmp_path / "away")
        await look(house)
        house.keeper.workers()[0].process.kill()
        await house.until(lambda: house.state("good") == "failed")
        (tmp_path / "away").rename(tmp_path / "repo")
        await look(house)
        await house.until(is_ready(house, "good"))

    in_house(tmp_path, play)


def test_a_new_brain_keeps_the_models_of_a_repository_that_it_cannot_read(tmp_path: Path) -> None:
    async def play(house: ControllerHarness) -> None:
        await house.until(is_ready(house, "good"))
        (worker,) = house.keeper.workers()
        (tmp_path / "repo").rename(tmp_path / "away")
        await house.kill_controller()
        await house.start_controller()
        await house.until(is_ready(house, "good"))
        await look(house)
        assert house.keeper.workers() == [worker]
        assert house.events("repository_lost")

    in_house(tmp_path, play)


def test_a_model_whose_own_folder_cannot_be_read_for_a_while_is_not_reloaded_after_it(tmp_path: Path) -> None:
    async def play(house: ControllerHarness) -> None:
        await house.until(is_ready(house, "good", "calm"))
        folder = tmp_path / "repo" / "good"
        folder.rename(tmp_path / "away")
        folder.symlink_to(folder)  # whoever opens it hears of too many links
        for _ in range(2):
            await look(house)
        assert len(house.events("load_failed", "good")) == 1
        folder.unlink()
        (tmp_path / "away").rename(folder)
        await look(house)
        assert is_ready(house, "good", "calm")()
        assert len(house.events("worker_spawn")) == 2

    in_house(tmp_path, play, ("good", "calm"))


def test_a_look_at_many_models_leaves_the_loop_to_others_between_them(tmp_path: Path) -> None:
    async def play(house: ControllerHarness) -> None:
        await house.until(house.controller.gateways.are_up)
        looking = asyncio.ensure_future(look(house))
        turns = 0
        while not looking.done():
            await asyncio.sleep(0)
            turns += 1
        assert turns > 20

    in_house(tmp_path, play, tuple(f"m{number}" for number in range(20)))


def test_a_load_that_takes_its_time_does_not_keep_others_from_being_looked_at(tmp_path: Path) -> None:
    def touch(name: str, text: str) -> None:
        (tmp_path / "repo" / name / "1" / "model.py").write_text(f"class Model: {text} = True\n")

    async def play(house: ControllerHarness) -> None:
        await house.until(is_ready(house, "slow", "other"))
        house.keeper.script = lambda _: None
        touch("slow", "first")
        first = asyncio.ensure_future(look(house))
        await house.until(lambda: len(house.keeper.workers()) == 3)
        loading = house.keeper.workers()[-1]
        house.keeper.script = Child.serve
        touch("other", "changed")
        touch("slow", "second")
        await look(house)
        assert house.events("model_reloaded", "other")
        assert not first.done()
        loading.serve()
        await first
        assert len(house.events("model_reloaded", "slow")) == 2, "what changed meanwhile was loaded after it"

    in_house(tmp_path, play, ("slow", "other"))


def test_a_model_without_a_process_may_leave_the_repository(tmp_path: Path) -> None:
    async def play(house: ControllerHarness) -> None:
        house.keeper.script = fail_to_load
        await house.until(lambda: house.state("good") in ("backoff", "failed"))
        await house.until(house.controller.gateways.are_up)
        shutil.rmtree(tmp_path / "repo" / "good")
        await look(house)
        await house.until(lambda: house.gateway().received_of(Unroute))
        assert house.state("good") == "unknown"

    in_house(tmp_path, play)


def test_a_model_that_comes_back_while_it_drains_is_loaded_again(tmp_path: Path) -> None:
    async def play(house: ControllerHarness) -> None:
        await house.until(is_ready(house, "good"))
        (tmp_path / "repo" / "good").rename(tmp_path / "away")
        await look(house)
        assert house.state("good") == "draining"
        (tmp_path / "away").rename(tmp_path / "repo" / "good")
        await look(house)
        await house.until(is_ready(house, "good"))

    in_house(tmp_path, play, mode="poll")


def test_a_model_that_was_named_and_not_there_waits_for_its_files(tmp_path: Path) -> None:
    async def run() -> None:
        async with (
            asyncio.timeout(60),
            ControllerHarness(tmp_path, ("a",), control_mode="explicit", load_models=("a", "late")) as house,
        ):
            await house.until(is_ready(house, "a"))
            await house.kill_controller()
            await house.start_controller()
            await house.until(is_ready(house, "a"))
            assert house.state("late") == "failed"
            await look(house)
            assert house.state("late") == "failed"
            add_model(tmp_path, "late")
            await look(house)
            await house.until(is_ready(house, "late"))
            assert scanner.missing_model("late") != house.controller.model_set.models["late"].entry

    asyncio.run(run())
