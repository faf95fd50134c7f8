"""What a look at the repositories moves, and what it leaves where it is."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from controller_double import Child, ControllerHarness, add_model, fail_to_load
from mmsup.ipc.messages.gateway_control import Unroute
from mmsup.ipc.messages.handshake import WIRE_VERSION, Hello
from mmsup.ipc.messages.worker_control import LoadFailed
from mmsup.supervisor.repository import scanner

pytestmark = pytest.mark.slow


def run_in_harness(
    home: Path,
    play: Callable[[ControllerHarness], Awaitable[None]],
    models: tuple[str, ...] = ("good",),
    mode: str = "none",
) -> None:
    async def run() -> None:
        async with asyncio.timeout(60), ControllerHarness(home, models, control_mode=mode, poll_s=3600.0) as harness:
            await play(harness)

    asyncio.run(run())


def is_ready(harness: ControllerHarness, *names: str) -> Callable[[], bool]:
    return lambda: all(harness.state(name) == "ready" for name in names)


async def look(harness: ControllerHarness) -> None:
    """As a poll does, from beginning to end."""
    await harness.controller.models.watcher.check()  # SIGHUP would not say when it is through


@pytest.mark.parametrize("mode", ["none", "poll"])
def test_models_of_a_repository_that_cannot_be_read_stay_untouched_until_it_can(tmp_path: Path, mode: str) -> None:
    async def play(harness: ControllerHarness) -> None:
        await harness.until(is_ready(harness, "a", "b"))
        (tmp_path / "repo").rename(tmp_path / "away")
        for _ in range(2):
            await look(harness)
        assert harness.controller.models.model_set.model("a") is not None
        (event,) = harness.events("repository_lost")
        assert str(tmp_path / "repo") in event["text"]
        (tmp_path / "away").rename(tmp_path / "repo")
        for _ in range(2):
            await look(harness)
        assert len(harness.events("repository_back")) == 1
        assert is_ready(harness, "a", "b")()
        assert len(harness.events("worker_spawn")) == 2
        assert not harness.events("model_unloaded")

    run_in_harness(tmp_path, play, ("a", "b"), mode)


def test_what_could_not_be_loaded_from_a_lost_repository_is_retried_when_it_is_back(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        await harness.until(is_ready(harness, "good"))
        (tmp_path / "repo").rename(tmp_path / "away")
        await look(harness)
        harness.keeper.workers()[0].process.kill()
        await harness.until(lambda: harness.state("good") == "failed")
        (tmp_path / "away").rename(tmp_path / "repo")
        await look(harness)
        await harness.until(is_ready(harness, "good"))

    run_in_harness(tmp_path, play)


def test_a_new_controller_keeps_the_models_of_a_repository_that_it_cannot_read(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        await harness.until(is_ready(harness, "good"))
        (worker,) = harness.keeper.workers()
        (tmp_path / "repo").rename(tmp_path / "away")
        await harness.kill_controller()
        await harness.start_controller()
        await harness.until(is_ready(harness, "good"))
        await look(harness)
        assert harness.keeper.workers() == [worker]
        assert harness.events("repository_lost")

    run_in_harness(tmp_path, play)


def test_a_model_whose_own_directory_cannot_be_read_for_a_while_is_not_reloaded_after_it(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        await harness.until(is_ready(harness, "good", "calm"))
        folder = tmp_path / "repo" / "good"
        folder.rename(tmp_path / "away")
        folder.symlink_to(folder)  # opening it fails with too many links
        for _ in range(2):
            await look(harness)
        assert len(harness.events("load_failed", "good")) == 1
        folder.unlink()
        (tmp_path / "away").rename(folder)
        await look(harness)
        assert is_ready(harness, "good", "calm")()
        assert len(harness.events("worker_spawn")) == 2

    run_in_harness(tmp_path, play, ("good", "calm"))


def test_a_scan_of_many_models_yields_the_loop_between_them(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        await harness.until(harness.controller.gateways.pool.are_up)
        looking = asyncio.ensure_future(look(harness))
        turns = 0
        while not looking.done():
            await asyncio.sleep(0)
            turns += 1
        assert turns > 20

    run_in_harness(tmp_path, play, tuple(f"m{number}" for number in range(20)))


def test_a_slow_load_delays_no_check_of_other_models(tmp_path: Path) -> None:
    def touch(name: str, text: str) -> None:
        (tmp_path / "repo" / name / "1" / "model.py").write_text(f"class Model: {text} = True\n")

    async def play(harness: ControllerHarness) -> None:
        await harness.until(is_ready(harness, "slow", "other"))
        harness.keeper.script = lambda _: None
        touch("slow", "first")
        first = asyncio.ensure_future(look(harness))
        await harness.until(lambda: len(harness.keeper.workers()) == 3)
        loading = harness.keeper.workers()[-1]
        harness.keeper.script = Child.serve
        touch("other", "changed")
        touch("slow", "second")
        await look(harness)
        assert harness.events("model_reloaded", "other")
        assert not first.done()
        loading.serve()
        await first
        assert len(harness.events("model_reloaded", "slow")) == 2, "what changed meanwhile was loaded after it"

    run_in_harness(tmp_path, play, ("slow", "other"))


def test_a_model_without_a_process_may_leave_the_repository(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        harness.keeper.script = fail_to_load
        await harness.until(lambda: harness.state("good") in ("backoff", "failed"))
        await harness.until(harness.controller.gateways.pool.are_up)
        shutil.rmtree(tmp_path / "repo" / "good")
        await look(harness)
        await harness.until(lambda: harness.gateway().received_of(Unroute))
        assert harness.state("good") == "unknown"

    run_in_harness(tmp_path, play)


def test_a_model_that_comes_back_while_it_drains_is_loaded_again(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        await harness.until(is_ready(harness, "good"))
        (tmp_path / "repo" / "good").rename(tmp_path / "away")
        await look(harness)
        assert harness.state("good") == "draining"
        (tmp_path / "away").rename(tmp_path / "repo" / "good")
        await look(harness)
        await harness.until(is_ready(harness, "good"))

    run_in_harness(tmp_path, play, mode="poll")


def test_a_model_that_was_named_and_not_there_waits_for_its_files(tmp_path: Path) -> None:
    async def run() -> None:
        async with (
            asyncio.timeout(60),
            ControllerHarness(tmp_path, ("a",), control_mode="explicit", load_models=("a", "late")) as harness,
        ):
            await harness.until(is_ready(harness, "a"))
            await harness.kill_controller()
            await harness.start_controller()
            await harness.until(is_ready(harness, "a"))
            assert harness.state("late") == "failed"
            await look(harness)
            assert harness.state("late") == "failed"
            add_model(tmp_path, "late")
            await look(harness)
            await harness.until(is_ready(harness, "late"))
            assert scanner.missing_model("late") != harness.controller.models.model_set.models["late"].entry

    asyncio.run(run())


async def poll(harness: ControllerHarness) -> None:
    await harness.controller.models.watcher.check(is_poll=True)


def reason(harness: ControllerHarness, name: str) -> str:
    return harness.controller.models.model_set.models[name].reason()


def test_a_model_that_arrives_in_pieces_is_served(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        await harness.until(is_ready(harness, "good"))
        folder = tmp_path / "repo" / "late"
        folder.mkdir()
        await poll(harness)
        assert harness.controller.models.model_set.models["late"].wanted
        assert (harness.state("late"), "has no version" in reason(harness, "late")) == ("failed", True)
        (folder / "mmsup.yaml").write_text((tmp_path / "repo" / "good" / "mmsup.yaml").read_text())
        (folder / "1").mkdir()
        await poll(harness)
        assert "holds no model.onnx" in reason(harness, "late")
        file = folder / "1" / "model.py"
        for chunk in ("class ", "Model: ", "...\n"):
            with file.open("a") as written:
                written.write(chunk)
            await poll(harness)
            assert (harness.state("late"), "being written" in reason(harness, "late")) == ("absent", True)
        assert len(harness.events("worker_spawn")) == 1, "nothing was loaded while it was being written"
        await poll(harness)
        await harness.until(is_ready(harness, "late"))
        assert not reason(harness, "late")

    run_in_harness(tmp_path, play, mode="poll")


def test_a_new_version_that_is_still_being_written_leaves_the_old_one_alone(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        await harness.until(is_ready(harness, "good"))
        add_model(tmp_path, "good", "2")
        await poll(harness)
        assert (is_ready(harness, "good")(), len(harness.events("worker_spawn"))) == (True, 1)
        await poll(harness)
        assert harness.events("model_reloaded", "good")

    run_in_harness(tmp_path, play, mode="poll")


def test_a_signal_loads_at_once_what_a_poll_would_wait_for(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        add_model(tmp_path, "late")
        await poll(harness)
        assert harness.state("late") == "absent"
        await look(harness)
        await harness.until(is_ready(harness, "late"))

    run_in_harness(tmp_path, play, mode="poll")


def test_a_model_that_waits_for_its_files_is_loaded_by_the_next_controller(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        await harness.until(is_ready(harness, "good"))
        add_model(tmp_path, "late")
        await poll(harness)
        await asyncio.sleep(0)  # the pass that saves it
        await harness.kill_controller()
        await harness.start_controller()
        await harness.until(is_ready(harness, "late"))

    run_in_harness(tmp_path, play, mode="poll")


def test_of_a_new_model_the_versions_without_a_fault_are_served(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        await harness.until(is_ready(harness, "good"))
        folder = add_model(tmp_path, "late").parent
        (folder / "config.pbtxt").write_text("version_policy: { all { } }\n")
        (folder / "2").mkdir()
        await poll(harness)
        await harness.until(lambda: harness.controller.models.model_set.models["late"].active)
        await harness.until(lambda: len(harness.keeper.workers()) == 2)
        assert "holds no model.onnx" in reason(harness, "late")
        (folder / "2" / "model.py").write_text("class Model: ...\n")
        for _ in range(2):
            await poll(harness)
        await harness.until(is_ready(harness, "late"))

    run_in_harness(tmp_path, play, mode="poll")


def mismatch(child: Child) -> None:
    child.send(Hello("worker", WIRE_VERSION, *child.life))
    child.send(LoadFailed("config_mismatch", "input 'x' is FP32 in its configuration, INT64 in the file"))
    child.process.kill()


def test_a_configuration_that_contradicts_the_file_is_not_tried_until_a_file_changes(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        harness.keeper.script = mismatch
        await harness.until(lambda: harness.state("good") == "failed")
        assert reason(harness, "good").startswith(
            "version 1: input 'x' is FP32 in its configuration, INT64 in the file;"
        )
        (instance,) = harness.controller.models.model_set.instances()
        assert instance.retry.timer is None
        await harness.kill_controller()
        await harness.start_controller()
        (instance,) = harness.controller.models.model_set.instances()
        assert (harness.state("good"), instance.retry.timer) == ("failed", None)
        harness.keeper.script = Child.serve
        await harness.controller.models.watcher.load_mended()
        assert len(harness.events("worker_spawn")) == 1, "nothing has changed"
        (tmp_path / "repo" / "good" / "1" / "model.py").write_text("class Model:\n    mended = True\n")
        await harness.controller.models.watcher.load_mended()
        await harness.until(is_ready(harness, "good"))

    run_in_harness(tmp_path, play)


def test_a_configuration_that_contradicts_the_file_is_tried_again_by_a_load(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        harness.keeper.script = mismatch
        await harness.until(lambda: harness.state("good") == "failed")
        harness.keeper.script = Child.serve
        await harness.controller.models.loader.load("good")
        assert is_ready(harness, "good")()

    run_in_harness(tmp_path, play)


def test_a_model_that_arrives_is_loaded_before_the_broken_ones_are_tried_again(tmp_path: Path) -> None:
    broken = tuple(f"b{number}" for number in range(4))

    async def play(harness: ControllerHarness) -> None:
        def script(child: Child) -> None:
            instance = harness.controller.models.model_set.instance(child.life[0])
            is_healthy = instance is not None and instance.revision.spec.name == "z"
            (Child.serve if is_healthy else fail_to_load)(child)

        harness.keeper.script = script
        await harness.until(is_ready(harness, "z"))
        spawned = [each["model"] for each in harness.events("worker_spawn")]
        assert spawned.index("z") <= len(broken) + 1, spawned

    run_in_harness(tmp_path, play, (*broken, "z"))
