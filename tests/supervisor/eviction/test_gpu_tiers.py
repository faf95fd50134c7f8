"""Memory of a GPU is made free: models go to host memory where that is enough, and are unloaded where it is not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from controller_double import METADATA, Child, ControllerHarness, add_model
from harness.nvml import Card, FakeNvml
from mmsup.ipc.memory.status_page import Activity
from mmsup.ipc.messages.handshake import WIRE_VERSION, Hello
from mmsup.ipc.messages.worker_control import (
    ModelOffloaded,
    ModelRestored,
    OffloadModel,
    RestoreModel,
    WorkerReady,
)
from mmsup.supervisor.models.model import asleep_in
from mmsup.supervisor.models.sleep_state import SleepReason

pytestmark = pytest.mark.slow
MIB = 1 << 20
FIRST, SECOND = "GPU-aaaa1111", "GPU-bbbb2222"
CONTEXT, WEIGHTS = 100 * MIB, 300 * MIB


class Gpus:
    """Two GPUs with a budget of 500 MiB each, and what their processes hold."""

    def __init__(self, harness: ControllerHarness, nvml: FakeNvml) -> None:
        self.harness, self.nvml = harness, nvml
        self.held: dict[int, int] = {}

    async def set_held(self, child: Child, held_bytes: int) -> None:
        """Wait until the controller has seen that."""
        self.held[child.process.pid] = held_bytes
        living = [each.process.pid for each in self.harness.keeper.workers()]
        self.nvml.set_cards(
            Card(FIRST, held=tuple((pid, size) for pid, size in self.held.items() if pid in living)), Card(SECOND)
        )
        instance = self.harness.controller.models.model_set.current_instance(*child.life)
        assert instance is not None
        await self.poll(lambda: instance.require_worker().gpu.usage.held_bytes == held_bytes)

    async def poll(self, is_so: Callable[[], bool]) -> None:
        """Wait for what NVML, or the sampler, is going to show: neither tells anybody."""
        controller = self.harness.controller
        while not is_so():
            controller.resources.gpus.monitor.refresh()
            for each in controller.models.model_set.instances():
                controller.models.footprints.observe(each)
            await asyncio.sleep(0.01)

    def child(self, name: str) -> Child:
        (found,) = [each for each in self.harness.keeper.workers() if each.spawn.argv[-1].startswith(f"{name}/")]
        return found

    def wake(self, name: str) -> asyncio.Task[object]:
        return asyncio.create_task(self.harness.controller.models.waker.wake_for_request(name))

    def asleep_in(self, name: str) -> str | None:
        return asleep_in(self.harness.controller.models.model_set.models[name])


def serve(child: Child) -> None:
    """Come up as the worker of a model that can be moved, and has been asked once."""
    child.send(Hello("worker", WIRE_VERSION, *child.life))
    child.page.set_activity(Activity.IDLE, time.monotonic_ns())
    child.page.batch_executed(1)
    is_old = child.spawn.argv[-1].startswith("old/")
    child.page.set_device_bytes(WEIGHTS if is_old else 0)
    child.beats = True
    child.send(WorkerReady(METADATA, 0.1, can_offload=is_old))


def run(home: Path, play: Callable[[Gpus], Awaitable[None]], **needs: str) -> None:
    (home / "nvml").mkdir()
    nvml = FakeNvml(home / "nvml", Card(FIRST), Card(SECOND))
    for name, need in needs.items():
        add_model(home, name, yaml=f"device: cuda:0\nttl: never\ngpu_memory: {need}\n")

    async def in_harness() -> None:
        harness = ControllerHarness(
            home,
            (),
            control_mode="on-demand",
            gpu_driver=nvml.env["MMSUP_GPU_DRIVER"],
            gpu_memory_budgets=(f":{500 * MIB}",),
        )
        harness.environ |= {"PYTHONPATH": nvml.env["PYTHONPATH"]}
        async with asyncio.timeout(60), harness:
            harness.keeper.script = serve
            await harness.until(lambda: harness.controller.models.waker.is_open)
            gpus = Gpus(harness, nvml)
            await gpus.wake("old")
            await gpus.set_held(gpus.child("old"), CONTEXT + WEIGHTS)
            footprints = harness.controller.models.model_set.memory.footprints
            await gpus.poll(lambda: any(each["gpu_settled_bytes"] for each in footprints("old")))
            await play(gpus)

    asyncio.run(in_harness())


def test_a_model_goes_to_host_memory_for_another_and_is_restored_when_that_one_went_for_it(tmp_path: Path) -> None:
    async def play(gpus: Gpus) -> None:
        harness, old = gpus.harness, gpus.child("old")
        waiting = gpus.wake("new")
        await harness.until(lambda: old.received_of(OffloadModel))
        assert not [each for each in harness.keeper.workers() if each is not old], "its memory is not there yet"
        old.send(ModelOffloaded(0.01, WEIGHTS))
        await waiting
        assert gpus.asleep_in("old") == "host-memory"
        (asleep,) = harness.events("model_asleep", "old")
        assert (asleep["reason"], asleep["tier"], asleep["held_bytes"]) == ("evicted", "host-memory", WEIGHTS)
        await gpus.set_held(old, CONTEXT)
        await gpus.set_held(gpus.child("new"), 250 * MIB)
        waiting = gpus.wake("old")
        await harness.until(lambda: harness.state("new") == "asleep")
        await harness.until(lambda: old.received_of(RestoreModel))
        old.send(ModelRestored(0.02))
        await waiting
        assert gpus.child("old") is old
        (footprint,) = harness.controller.models.model_set.memory.footprints("old")
        assert footprint["restore_s"] == 0.02

    run(tmp_path, play, old="450MiB", new="250MiB")


def test_a_model_is_unloaded_where_its_weights_alone_are_not_enough(tmp_path: Path) -> None:
    async def play(gpus: Gpus) -> None:
        await gpus.wake("new")
        assert gpus.asleep_in("old") == "unloaded"
        assert gpus.harness.events("model_asleep", "old")[-1]["tier"] == "unloaded"
        assert not gpus.harness.events("worker_offloaded")

    run(tmp_path, play, old="450MiB", new="450MiB")


def test_the_context_of_one_that_is_in_host_memory_goes_where_it_is_needed(tmp_path: Path) -> None:
    async def play(gpus: Gpus) -> None:
        harness, old = gpus.harness, gpus.child("old")
        harness.controller.models.sleeper.put_to_sleep(
            harness.controller.models.model_set.models["old"], SleepReason.TTL
        )
        await harness.until(lambda: old.received_of(OffloadModel))
        old.send(ModelOffloaded(0.01, WEIGHTS))
        await gpus.set_held(old, CONTEXT)
        await gpus.wake("new")
        assert gpus.asleep_in("old") == "unloaded"
        assert "it is in host memory no more" in harness.events("model_asleep", "old")[-1]["text"]

    run(tmp_path, play, old="450MiB", new="450MiB")


def test_a_model_for_any_gpu_goes_to_the_one_whose_budget_has_room(tmp_path: Path) -> None:
    async def play(gpus: Gpus) -> None:
        home, load = gpus.harness.home, gpus.harness.controller.models.loader.load
        for name in ("small", "small2"):
            add_model(home, name, yaml="device: cuda:1\ngpu_memory: 10MiB\n")
            await load(name)
        add_model(home, "fits", yaml="device: cuda\ngpu_memory: 50MiB\n")
        add_model(home, "wide", yaml="device: cuda\ngpu_memory: 400MiB\n")
        await load("fits")
        assert gpus.child("fits").spawn.env["CUDA_VISIBLE_DEVICES"] == FIRST, "both have room: fewer workers are there"
        await load("wide")
        assert gpus.child("wide").spawn.env["CUDA_VISIBLE_DEVICES"] == SECOND, "the other one has no room"

    run(tmp_path, play, old="450MiB")
