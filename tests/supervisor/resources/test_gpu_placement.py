"""Where workers go, in a brain with played children, and what NVML's word does to it: NVML is played as well."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from brain_double import Child, ControllerHarness, add_model
from harness.nvml import GIB, Card, FakeNvml
from mmsup.ipc.errors import CallerError, MmsupError
from mmsup.ipc.messages.worker_control import LoadFailed
from mmsup.supervisor.gpu import memory_release
from mmsup.supervisor.gpu import monitor as lookout

pytestmark = pytest.mark.slow
FIRST, SECOND = "GPU-aaaa1111", "GPU-bbbb2222"
Play = Callable[[ControllerHarness, FakeNvml], Awaitable[None]]


def on_gpus(
    home: Path, play: Play, models: dict[str, str], shown: str = "", *, driver: bool = True, kill_limit_s: float = 10.0
) -> None:
    """A house on two GPUs, with models by name and what their mmsup.yaml says."""
    (home / "nvml").mkdir()
    nvml = FakeNvml(home / "nvml", Card(FIRST), Card(SECOND))
    for name, yaml in models.items():
        add_model(home, name, yaml=f"{yaml}\n")

    async def run() -> None:
        path = nvml.env["MMSUP_GPU_DRIVER"] if driver else str(home / "none")
        house = ControllerHarness(home, (), gpu_driver=path, kill_limit_s=kill_limit_s)
        house.environ |= {"PYTHONPATH": nvml.env["PYTHONPATH"]} | ({"CUDA_VISIBLE_DEVICES": shown} if shown else {})
        async with asyncio.timeout(60), house:
            house.controller.state_dir.event_log.subscribe(lambda _: house.controller.change_signal.set())
            await house.until(lambda: all(house.state(name) in ("ready", "backoff") for name in models))
            await play(house, nvml)

    asyncio.run(run())


def places(house: ControllerHarness) -> dict[str, list[str]]:
    """What the workers of each model see."""
    found: dict[str, list[str]] = {}
    for each in house.keeper.workers():
        found.setdefault(each.spawn.argv[-1].split("/")[0], []).append(each.spawn.env["CUDA_VISIBLE_DEVICES"])
    return found


def worker(house: ControllerHarness, name: str) -> Child:
    (found,) = [each for each in house.keeper.workers() if each.spawn.argv[-1].startswith(f"{name}/")]
    return found


async def ask(house: ControllerHarness, verb: str, **arguments: Any) -> Any:  # JSON
    return await house.controller.handlers.handle(verb, arguments, lambda _: None)


async def seen(house: ControllerHarness, used_bytes: int) -> None:
    """Until the brain has seen so much memory of the first device in use."""
    lookout, moved = house.controller._gpu_monitor, house.controller.change_signal
    looked = lookout.on_update

    def tell() -> bool:
        moved.set()
        return looked()

    lookout.on_update = tell
    await house.until(lambda: house.controller._gpu_placement.rows()[0]["memory_used_bytes"] == used_bytes)


def test_without_a_driver_nothing_is_asked_and_a_gpu_is_refused_with_the_reason(tmp_path: Path) -> None:
    async def play(house: ControllerHarness, nvml: FakeNvml) -> None:
        assert (
            "there is no GPU here: the NVIDIA driver is not loaded" in house.controller.model_set.models["m"].reason()
        )
        assert places(house) == {"cpu": [""]}
        assert await ask(house, "devices") == {"devices": []}
        assert nvml.looks() == 0

    on_gpus(tmp_path, play, {"m": "device: cuda", "cpu": "device: cpu"}, driver=False)


def test_plain_cuda_goes_where_the_fewest_are_and_names_mean_what_they_say(tmp_path: Path) -> None:
    async def play(house: ControllerHarness, _: FakeNvml) -> None:
        assert places(house) == {"bound": [FIRST], "free": [SECOND], "named": [SECOND]}
        told = [(each["device"], each["workers"]) for each in (await ask(house, "devices"))["devices"]]
        assert told == [("cuda:0", 1), ("cuda:1", 2)]

    on_gpus(tmp_path, play, {"bound": "device: cuda:0", "free": "device: cuda", "named": f"device: {SECOND}"})


def test_only_what_the_server_may_see_is_given_out(tmp_path: Path) -> None:
    async def play(house: ControllerHarness, _: FakeNvml) -> None:
        assert places(house) == {"m": [SECOND]}
        assert [each["uuid"] for each in (await ask(house, "devices"))["devices"]] == [SECOND]

    on_gpus(tmp_path, play, {"m": "device: cuda:0"}, shown="1")


def test_numbers_mean_the_same_to_the_next_brain_also_while_nvml_is_silent(tmp_path: Path) -> None:
    async def play(house: ControllerHarness, nvml: FakeNvml) -> None:
        nvml.set_cards(Card(FIRST, lost=True), Card(SECOND))
        house.controller._gpu_health.cordoned[SECOND] = "of no account"
        await house.until(house.controller.gateways.are_up)
        house.controller.save_checkpoint()
        await house.kill_controller()
        await house.start_controller()
        assert [each["uuid"] for each in (await ask(house, "devices"))["devices"]] == [FIRST, SECOND]
        with pytest.raises(MmsupError, match="set aside: of no account") as refused:
            await ask(house, "load", name="m")
        assert (refused.value.code, refused.value.retryable) == ("gpu_fault", True)
        assert await ask(house, "devices_release", device="cuda") == {"released": [SECOND]}
        await house.until(lambda: house.state("m") == "ready")
        assert places(house) == {"m": [SECOND]}

    on_gpus(tmp_path, play, {"m": "device: cuda:1"})


def test_a_device_that_is_not_here_cannot_be_released(tmp_path: Path) -> None:
    async def play(house: ControllerHarness, _: FakeNvml) -> None:
        with pytest.raises(CallerError, match="'cuda:7' is not here"):
            await ask(house, "devices_release", device="cuda:7")
        assert await ask(house, "devices_release", device=FIRST) == {"released": []}

    on_gpus(tmp_path, play, {})


@pytest.mark.fault("F20")
def test_where_nvml_shows_nobody_the_workers_own_word_counts_and_another_ones_cap_is_its_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_release, "WAIT_S", 1.0)

    async def play(house: ControllerHarness, nvml: FakeNvml) -> None:
        worker(house, "first").page.set_device_bytes(70 * GIB)
        nvml.set_cards(Card(FIRST, free_bytes=10 * GIB), Card(SECOND))
        await seen(house, 70 * GIB)
        await ask(house, "unload", name="first")
        await house.until(lambda: house.events("worker_stopped"))
        add_model(house.home, "next", yaml="device: cuda:0\ngpu_memory: 20GiB\n")
        add_model(house.home, "small", yaml="device: cuda:0\ngpu_memory: 5GiB\n")
        add_model(house.home, "unknown", yaml="device: cuda:0\n")
        said: list[Any] = []
        waiting = asyncio.get_running_loop().create_task(
            house.controller.handlers.handle("load", {"name": "next"}, said.append)
        )
        await ask(house, "load", name="small")
        with pytest.raises(MmsupError, match="has 10GiB of memory free, and 20GiB are needed") as refused:
            await waiting
        assert refused.value.code == "insufficient_gpu_memory"
        assert [each["progress"] for each in said] == ["version 1: waiting for memory of cuda:0 (NVIDIA H200)"]
        await ask(house, "load", name="unknown")

    on_gpus(tmp_path, play, {"first": "device: cuda:0"})


@pytest.mark.fault("F20")
def test_what_the_kernel_holds_has_not_given_its_memory_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_release, "WAIT_S", 0.5)

    async def play(house: ControllerHarness, nvml: FakeNvml) -> None:
        child = worker(house, "m")
        nvml.set_cards(Card(FIRST, free_bytes=10 * GIB, held=((child.process.pid, 70 * GIB),)), Card(SECOND))
        await seen(house, 70 * GIB)
        with monkeypatch.context() as kernel:
            kernel.setattr(child.process, "send_signal", lambda _: None)
            child.send(LoadFailed("load_failed", "a lie, to be killed for"))
            await house.until(lambda: house.events("worker_quarantined"))
            await house.until(lambda: house.events("load_failed"))
        assert "70GiB are needed" in house.events("load_failed")[0]["text"]

    on_gpus(tmp_path, play, {"m": "device: cuda:0"}, kill_limit_s=0.1)


@pytest.mark.fault("F21")
def test_while_nvml_is_silent_nobody_waits_for_it_and_tries_grow_rare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play(house: ControllerHarness, nvml: FakeNvml) -> None:
        nvml.set_cards(Card(FIRST, lost=True), Card(SECOND, lost=True))
        await house.until(lambda: house.events("gpu_silent"))
        rows = (await ask(house, "devices"))["devices"]
        assert [(each["stale"], each["memory_used_bytes"]) for each in rows] == [(True, None), (True, None)]
        looks = nvml.looks()
        worker(house, "m").process.kill()
        await house.until(lambda: len(house.events("worker_ready")) == 2)
        assert nvml.looks() == looks
        nvml.set_cards(Card(FIRST), Card(SECOND))
        await house.until(lambda: house.events("gpu_back"))
        assert len(house.events("gpu_silent")) == 1

    monkeypatch.setattr(lookout, "EVERY_S", 0.1)
    on_gpus(tmp_path, play, {"m": "device: cuda:0"})
