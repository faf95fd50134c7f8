"""Models that are asleep in host memory, over new controllers, changed files, lost workers and a second sleep."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from controller_double import METADATA, Child, ControllerHarness, add_model
from mmsup.ipc.memory.status_page import Activity
from mmsup.ipc.messages.handshake import WIRE_VERSION, Hello
from mmsup.ipc.messages.worker_control import (
    LoadFailed,
    ModelOffloaded,
    ModelRestored,
    OffloadModel,
    RestoreModel,
    StopWorker,
    WorkerReady,
)
from mmsup.supervisor.models.model import Model, asleep_in
from mmsup.supervisor.models.sleep_state import SleepReason

pytestmark = pytest.mark.slow
Play = Callable[[ControllerHarness], Awaitable[None]]


def serve(child: Child) -> None:
    """Come up as the worker of a model that can be moved."""
    child.send(Hello("worker", WIRE_VERSION, *child.life))
    child.page.set_activity(Activity.IDLE, time.monotonic_ns())
    child.beats = True
    child.send(WorkerReady(METADATA, 0.1, can_offload=True))


def run(home: Path, play: Play, yaml: str = "sleep: host-memory\nttl: never\n") -> None:
    add_model(home, "m", yaml=yaml)

    async def in_harness() -> None:
        async with asyncio.timeout(60), ControllerHarness(home, (), control_mode="on-demand") as harness:
            harness.keeper.script = serve
            await harness.until(lambda: harness.controller.models.waker.is_open)
            await harness.controller.models.waker.wake_for_request("m")
            await play(harness)

    asyncio.run(in_harness())


def model(harness: ControllerHarness) -> Model:
    found = harness.controller.models.model_set.model("m")
    assert found is not None
    return found


def worker(harness: ControllerHarness) -> Child:
    (found,) = harness.keeper.workers()
    return found


def state(harness: ControllerHarness) -> str:
    return ", ".join(str(each.state) for each in model(harness).instances())


async def offload(harness: ControllerHarness) -> None:
    child = worker(harness)
    assert harness.controller.models.sleeper.put_to_sleep(model(harness), SleepReason.ASKED) == ""
    await harness.until(lambda: child.received_of(OffloadModel))
    child.send(ModelOffloaded(0.01, 0))
    await harness.until(lambda: state(harness) == "offloaded")


async def wake(harness: ControllerHarness) -> asyncio.Task[object]:
    return asyncio.create_task(harness.controller.models.waker.wake_for_request("m"))


async def restore(harness: ControllerHarness) -> None:
    child, woken = worker(harness), await wake(harness)
    await harness.until(lambda: child.received_of(RestoreModel))
    child.send(ModelRestored(0.02))
    await woken
    assert harness.state("m") == "ready"


@pytest.mark.parametrize("when", ["offloading", "offloaded", "restoring"])
def test_a_new_controller_goes_on_with_a_move_wherever_the_one_before_ended(tmp_path: Path, when: str) -> None:
    async def play(harness: ControllerHarness) -> None:
        child = worker(harness)
        if when == "offloading":
            harness.controller.models.sleeper.put_to_sleep(model(harness), SleepReason.ASKED)
            await harness.until(lambda: child.received_of(OffloadModel))
        else:
            await offload(harness)
        if when == "restoring":
            woken = await wake(harness)
            await harness.until(lambda: child.received_of(RestoreModel))
            woken.cancel()
        await harness.kill_controller()
        before = len(child.received)
        await harness.start_controller()
        await harness.until(lambda: harness.controller.models.waker.is_open)
        await harness.until(lambda: len(child.received) > before)
        if when == "restoring":
            assert child.received_of(RestoreModel)
            child.send(ModelRestored(0.02))
        else:
            child.send(ModelOffloaded(0.0, 0))
            await harness.until(lambda: state(harness) == "offloaded")
            assert harness.state("m") == "asleep"
            await restore(harness)
        await harness.until(lambda: harness.state("m") == "ready")
        assert worker(harness) is child

    run(tmp_path, play)


def test_a_request_that_comes_while_its_model_leaves_has_it_back_without_a_load(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        child = worker(harness)
        harness.controller.models.sleeper.put_to_sleep(model(harness), SleepReason.TTL)
        woken = await wake(harness)
        await harness.until(lambda: child.received_of(OffloadModel))
        assert not child.received_of(RestoreModel)
        child.send(ModelOffloaded(0.01, 0))
        await harness.until(lambda: child.received_of(RestoreModel))
        child.send(ModelRestored(0.02))
        await woken
        assert worker(harness) is child
        (version,) = model(harness).route().versions
        assert (version.state, version.wake_wait_s) == ("ready", 0.0)

    run(tmp_path, play)


def test_a_restore_that_fails_is_a_load_for_who_waits_and_moves_are_not_tried_again(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        await offload(harness)
        child, woken = worker(harness), await wake(harness)
        await harness.until(lambda: child.received_of(RestoreModel))
        child.send(LoadFailed("load_failed", "model 'm' failed: boom"))
        child.process.kill()
        await woken
        assert worker(harness) is not child
        (failed,) = harness.events("restore_failed")
        assert "could not be restored from host memory: model 'm' failed: boom" in failed["text"]
        assert harness.controller.models.sleeper.put_to_sleep(model(harness), SleepReason.ASKED) == ""
        await harness.until(lambda: not list(model(harness).instances()))
        assert "its last move failed" in harness.events("model_asleep")[-1]["text"]

    run(tmp_path, play)


def test_an_unload_ends_what_is_in_host_memory_at_each_of_its_steps(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        loader = harness.controller.models.loader
        await offload(harness)
        await loader.unload("m")
        await harness.until(lambda: not harness.keeper.workers())
        await loader.load("m")
        child = worker(harness)
        harness.controller.models.sleeper.put_to_sleep(model(harness), SleepReason.ASKED)
        await loader.unload("m")
        await harness.until(lambda: child.received_of(StopWorker))
        await harness.until(lambda: harness.state("m") == "stopped")

    run(tmp_path, play)


def test_a_copy_in_host_memory_is_given_up_once_and_a_load_follows(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        sleeper = harness.controller.models.sleeper
        await offload(harness)
        assert asleep_in(model(harness)) == "host-memory"
        assert sleeper.give_up_copy(model(harness), SleepReason.EVICTED, "for another")
        assert not sleeper.give_up_copy(model(harness), SleepReason.EVICTED, "for another")
        assert asleep_in(model(harness)) == "unloaded"
        await harness.until(lambda: not harness.keeper.workers())
        assert harness.state("m") == "asleep"
        assert model(harness).reason() == "its memory was needed for another"
        await harness.controller.models.waker.wake_for_request("m")
        assert harness.state("m") == "ready"

    run(tmp_path, play)
