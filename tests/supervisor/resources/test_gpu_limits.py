"""Hard limits of device memory, on recorded files."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from mmsup.ipc.specs import ModelSpec
from mmsup.supervisor.gpu.inventory import Gpu
from mmsup.supervisor.linux.cgroup import Cgroup
from mmsup.supervisor.resources.gpu_limits import has_mps, limit_worker, ring_facts

CARD = Gpu(0, "GPU-a", "H", 1 << 37, pci="00000000:3B:00.0")
SPEC = ModelSpec("m", "1", "/models/m", "m.onnx", "ort", "onnxruntime_onnx", device="cuda:0", gpu_memory_bytes=4 << 30)


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A v2 tree with the dmem controller, and an MPS daemon."""
    (tmp_path / "dmem.capacity").write_text("drm/0000:3b:00.0/vram0 150754820096\n")
    (tmp_path / "w1.1").mkdir()
    (tmp_path / "w1.1" / "dmem.max").write_text("drm/0000:3b:00.0/vram0 max\n")
    (tmp_path / "mps").mkdir()
    (tmp_path / "mps" / "nvidia-cuda-mps-control.pid").write_text(f"{os.getpid()}\n")
    return tmp_path


def limit(machine: Path, spec: ModelSpec, gpu: Gpu | None = CARD) -> tuple[dict[str, str], str]:
    """The worker's environment, and what its group holds then."""
    group = Cgroup([machine / "w1.1"])
    env = limit_worker(spec, gpu, group, machine, str(machine / "mps"))
    return dict(env), (machine / "w1.1" / "dmem.max").read_text().strip()


def test_a_worker_with_gpu_memory_gets_every_limit_that_there_is(machine: Path) -> None:
    env, text = limit(machine, SPEC)
    assert text.startswith(f"drm/0000:3b:00.0/vram0 {4 << 30}")
    assert env == {"CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": "0=4096M"}
    assert ring_facts(answers=True, has_dmem=True, root=machine, mps_folder=str(machine / "mps")).has_mps


@pytest.mark.parametrize("spec", [replace(SPEC, device="cpu"), replace(SPEC, gpu_memory_bytes=None)])
def test_a_worker_without_one_gets_none(machine: Path, spec: ModelSpec) -> None:
    assert limit(machine, spec) == ({}, "drm/0000:3b:00.0/vram0 max")


def test_without_controller_and_daemon_nothing_is_asked_of_them(tmp_path: Path) -> None:
    assert limit_worker(SPEC, CARD, Cgroup(()), tmp_path, str(tmp_path / "mps")) == {}
    assert ring_facts(answers=True, has_dmem=True, root=tmp_path, mps_folder=str(tmp_path)).dmem_regions == ()


def test_a_daemon_that_has_left_its_files_behind_is_none(machine: Path) -> None:
    (machine / "mps" / "nvidia-cuda-mps-control.pid").write_text(f"{2**22 + 1}")
    assert not has_mps(str(machine / "mps"))
    assert limit(machine, SPEC)[0] == {}


def test_a_model_may_name_the_folder_of_its_own_daemon(machine: Path) -> None:
    env = limit_worker(
        replace(SPEC, env={"CUDA_MPS_PIPE_DIRECTORY": str(machine / "mps")}), CARD, Cgroup(()), machine, "/nowhere"
    )
    assert env == {"CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": "0=4096M"}
