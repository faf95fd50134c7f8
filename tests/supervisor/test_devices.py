from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from mmsup.supervisor import gpu
from mmsup.supervisor.devices import Devices

TWO = gpu.Gpus((gpu.Gpu(0, "GPU-aa", "H", 1), gpu.Gpu(1, "GPU-bb", "H", 1)))


@pytest.fixture
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    async def ask(_: object) -> gpu.Gpus:
        return TWO

    monkeypatch.setattr(gpu, "ask", ask)
    (tmp_path / "nvidiactl").touch()
    return tmp_path / "nvidiactl"


def test_without_a_driver_nothing_is_asked_and_a_gpu_is_refused_with_the_reason(tmp_path: Path) -> None:
    devices = Devices({}, tmp_path / "none")
    asyncio.run(devices.learn())
    assert devices.visible("cpu", []) == ""
    with pytest.raises(gpu.NoGpu, match="driver is not loaded"):
        devices.visible("cuda", [])


def test_until_nvml_has_answered_a_device_is_taken_at_its_word(two_gpus: Path) -> None:
    assert Devices({}, two_gpus).visible("cuda:1", []) == "1"


def test_plain_cuda_goes_where_the_fewest_are(two_gpus: Path) -> None:
    devices = Devices({}, two_gpus)
    asyncio.run(devices.learn())
    assert devices.visible("cuda", ["GPU-aa", ""]) == "GPU-bb"
    assert devices.visible("cuda", ["GPU-bb", "GPU-bb", "GPU-aa"]) == "GPU-aa"


def test_only_what_the_server_may_see_is_given_out(two_gpus: Path) -> None:
    devices = Devices({"CUDA_VISIBLE_DEVICES": "1"}, two_gpus)
    asyncio.run(devices.learn())
    assert devices.visible("cuda", []) == "GPU-bb"
