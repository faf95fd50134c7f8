"""The placement of workers on GPUs, in a controller with simulated children and a fake NVML."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from controller_double import Child, ControllerHarness, add_model
from harness.nvml import GIB, Card, FakeNvml
from mmsup.ipc.errors import CallerError, MmsupError
from mmsup.ipc.messages.worker_control import ConfigureWorker, LoadFailed
from mmsup.supervisor.gpu import memory_release, monitor

pytestmark = pytest.mark.slow
FIRST, SECOND = "GPU-aaaa1111", "GPU-bbbb2222"
Play = Callable[[ControllerHarness, FakeNvml], Awaitable[None]]


def on_gpus(
    home: Path, play: Play, models: dict[str, str], shown: str = "", *, driver: bool = True, kill_limit_s: float = 10.0
) -> None:
    """A controller with two GPUs, and models by name with their mmsup.yaml."""
    (home / "nvml").mkdir()
    nvml = FakeNvml(home / "nvml", Card(FIRST), Card(SECOND))
    for name, yaml in models.items():
        add_model(home, name, yaml=f"{yaml}\n")

    async def run() -> None:
        path = nvml.env["MMSUP_GPU_DRIVER"] if driver else str(home / "none")
        harness = ControllerHarness(home, (), gpu_driver=path, kill_limit_s=kill_limit_s)
        harness.environ |= {"PYTHONPATH": nvml.env["PYTHONPATH"]} | ({"CUDA_VISIBLE_DEVICES": shown} if shown else {})
        async with asyncio.timeout(60), harness:
            harness.controller.context.state_dir.event_log.subscribe(
                lambda _: harness.controller.context.change_signal.set()
            )
            await harness.until(lambda: all(harness.state(name) in ("ready", "backoff") for name in models))
            await play(harness, nvml)

    asyncio.run(run())


def devices_of_models(harness: ControllerHarness) -> dict[str, list[str]]:
    """CUDA_VISIBLE_DEVICES of the workers of each model."""
    found: dict[str, list[str]] = {}
    for each in harness.keeper.workers():
        found.setdefault(each.spawn.argv[-1].split("/")[0], []).append(each.spawn.env["CUDA_VISIBLE_DEVICES"])
    return found


def worker(harness: ControllerHarness, name: str) -> Child:
    (found,) = [each for each in harness.keeper.workers() if each.spawn.argv[-1].startswith(f"{name}/")]
    return found


async def command(harness: ControllerHarness, verb: str, **arguments: Any) -> Any:  # JSON
    return await harness.controller.api.handlers.handle(verb, arguments, lambda _: None)


async def used_memory_is(harness: ControllerHarness, used_bytes: int) -> None:
    """Wait until the controller has seen so much memory of the first device in use."""
    lookout, change = harness.controller.resources.gpus.monitor, harness.controller.context.change_signal
    on_update = lookout.on_update

    def tell() -> bool:
        change.set()
        return on_update()

    lookout.on_update = tell
    await harness.until(
        lambda: harness.controller.resources.gpus.placement.rows()[0]["memory_used_bytes"] == used_bytes
    )


def test_without_a_driver_nothing_is_asked_and_a_gpu_is_refused_with_the_reason(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness, nvml: FakeNvml) -> None:
        assert (
            "there is no GPU here: the NVIDIA driver is not loaded"
            in harness.controller.models.model_set.models["m"].reason()
        )
        assert devices_of_models(harness) == {"cpu": [""]}
        assert await command(harness, "devices") == {"devices": []}
        assert (await command(harness, "devices", why=True))["why"] == "the NVIDIA driver is not loaded"
        assert nvml.looks() == 0

    on_gpus(tmp_path, play, {"m": "device: cuda", "cpu": "device: cpu"}, driver=False)


def test_plain_cuda_takes_the_device_with_the_fewest_workers_and_names_their_own(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness, _: FakeNvml) -> None:
        assert devices_of_models(harness) == {"bound": [FIRST], "free": [SECOND], "named": [SECOND]}
        rows = [(each["device"], each["workers"]) for each in (await command(harness, "devices"))["devices"]]
        assert rows == [("cuda:0", 1), ("cuda:1", 2)]

    on_gpus(tmp_path, play, {"bound": "device: cuda:0", "free": "device: cuda", "named": f"device: {SECOND}"})


@pytest.mark.parametrize(("driver", "device", "visible"), [(True, "cuda", FIRST), (False, "cpu", "")])
def test_a_worker_on_auto_is_configured_for_the_device_that_it_sees(
    tmp_path: Path, driver: bool, device: str, visible: str
) -> None:
    async def play(harness: ControllerHarness, _: FakeNvml) -> None:
        assert devices_of_models(harness) == {"m": [visible]}
        (configuration,) = [each for each in worker(harness, "m").received if isinstance(each, ConfigureWorker)]
        assert configuration.spec.device == device

    on_gpus(tmp_path, play, {"m": "device: auto"}, driver=driver)


def test_only_devices_that_the_server_sees_are_assigned(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness, _: FakeNvml) -> None:
        assert devices_of_models(harness) == {"m": [SECOND]}
        assert [each["uuid"] for each in (await command(harness, "devices"))["devices"]] == [SECOND]

    on_gpus(tmp_path, play, {"m": "device: cuda:0"}, shown="1")


def test_the_next_controller_numbers_devices_alike_even_while_nvml_does_not_answer(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness, nvml: FakeNvml) -> None:
        nvml.set_cards(Card(FIRST, lost=True), Card(SECOND))
        harness.controller.resources.gpus.health.cordoned[SECOND] = "of no account"
        await harness.until(harness.controller.gateways.pool.are_up)
        harness.controller._save_gpus()
        await harness.kill_controller()
        await harness.start_controller()
        assert [each["uuid"] for each in (await command(harness, "devices"))["devices"]] == [FIRST, SECOND]
        with pytest.raises(MmsupError, match="set aside: of no account") as refused:
            await command(harness, "load", name="m")
        assert (refused.value.code, refused.value.retryable) == ("gpu_fault", True)
        assert await command(harness, "devices_release", device="cuda") == {"released": [SECOND]}
        await harness.until(lambda: harness.state("m") == "ready")
        assert devices_of_models(harness) == {"m": [SECOND]}

    on_gpus(tmp_path, play, {"m": "device: cuda:1"})


def test_a_device_that_does_not_exist_cannot_be_released(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness, _: FakeNvml) -> None:
        with pytest.raises(CallerError, match="'cuda:7' is not here"):
            await command(harness, "devices_release", device="cuda:7")
        assert await command(harness, "devices_release", device=FIRST) == {"released": []}

    on_gpus(tmp_path, play, {})


@pytest.mark.fault("F20")
def test_where_nvml_shows_no_process_the_workers_own_figure_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_release, "WAIT_S", 1.0)

    async def play(harness: ControllerHarness, nvml: FakeNvml) -> None:
        worker(harness, "first").page.set_device_bytes(70 * GIB)
        nvml.set_cards(Card(FIRST, free_bytes=10 * GIB), Card(SECOND))
        await used_memory_is(harness, 70 * GIB)
        await command(harness, "unload", name="first")
        await harness.until(lambda: harness.events("worker_stopped"))
        add_model(harness.home, "next", yaml="device: cuda:0\ngpu_memory: 20GiB\n")
        add_model(harness.home, "small", yaml="device: cuda:0\ngpu_memory: 5GiB\n")
        add_model(harness.home, "unknown", yaml="device: cuda:0\n")
        progress: list[Any] = []
        waiting = asyncio.get_running_loop().create_task(
            harness.controller.api.handlers.handle("load", {"name": "next"}, progress.append)
        )
        await command(harness, "load", name="small")
        with pytest.raises(MmsupError, match="has 10GiB of memory free, and 20GiB are needed") as refused:
            await waiting
        assert refused.value.code == "insufficient_gpu_memory"
        assert [each["progress"] for each in progress] == ["version 1: waiting for memory of cuda:0 (NVIDIA H200)"]
        await command(harness, "load", name="unknown")

    on_gpus(tmp_path, play, {"first": "device: cuda:0"})


@pytest.mark.fault("F20")
def test_an_unkillable_process_has_not_released_its_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_release, "WAIT_S", 0.5)

    async def play(harness: ControllerHarness, nvml: FakeNvml) -> None:
        child = worker(harness, "m")
        nvml.set_cards(Card(FIRST, free_bytes=10 * GIB, held=((child.process.pid, 70 * GIB),)), Card(SECOND))
        await used_memory_is(harness, 70 * GIB)
        with monkeypatch.context() as kernel:
            kernel.setattr(child.process, "send_signal", lambda _: None)
            child.send(LoadFailed("load_failed", "a lie, to be killed for"))
            await harness.until(lambda: harness.events("worker_quarantined"))
            await harness.until(lambda: harness.events("load_failed"))
        assert "70GiB are needed" in harness.events("load_failed")[0]["text"]

    on_gpus(tmp_path, play, {"m": "device: cuda:0"}, kill_limit_s=0.1)


@pytest.mark.fault("F21")
def test_while_nvml_does_not_answer_no_load_waits_and_queries_become_rare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play(harness: ControllerHarness, nvml: FakeNvml) -> None:
        nvml.set_cards(Card(FIRST, lost=True), Card(SECOND, lost=True))
        await harness.until(lambda: harness.events("gpu_silent"))
        rows = (await command(harness, "devices"))["devices"]
        assert [(each["stale"], each["memory_used_bytes"]) for each in rows] == [(True, None), (True, None)]
        queries = nvml.looks()
        worker(harness, "m").process.kill()
        await harness.until(lambda: len(harness.events("worker_ready")) == 2)
        assert nvml.looks() == queries
        nvml.set_cards(Card(FIRST), Card(SECOND))
        await harness.until(lambda: harness.events("gpu_back"))
        assert len(harness.events("gpu_silent")) == 1

    monkeypatch.setattr(monitor, "INTERVAL_S", 0.1)
    on_gpus(tmp_path, play, {"m": "device: cuda:0"})
