"""Options of execution providers; onnxruntime's CUDA provider is not needed for this."""

from __future__ import annotations

import pytest

from mmsup.ipc.errors import ModelError
from mmsup.worker.engines.gpu_memory_limit import arena_limit
from mmsup.worker.engines.ort import provider_options

GIB = 1 << 30


def test_the_cpu_has_one_provider() -> None:
    assert provider_options("cpu", 4 * GIB, tensorrt=True) == [("CPUExecutionProvider", {})]


@pytest.mark.parametrize("device", ["cuda", "cuda:3", "GPU-1f2e"])
def test_a_device_is_number_zero_of_its_own_process_and_its_arena_is_capped(device: str) -> None:
    names = dict(provider_options(device, 4 * GIB, tensorrt=False))
    assert list(names) == ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert names["CUDAExecutionProvider"] == {
        "device_id": "0",
        "arena_extend_strategy": "kSameAsRequested",
        "gpu_mem_limit": str(arena_limit(4 * GIB)),
    }


def test_without_a_budget_there_is_no_cap() -> None:
    assert "gpu_mem_limit" not in dict(provider_options("cuda", None, tensorrt=False))["CUDAExecutionProvider"]


def test_tensorrt_comes_first_when_it_is_switched_on() -> None:
    names = [name for name, _ in provider_options("cuda", 4 * GIB, tensorrt=True)]
    assert names == ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]


def test_a_budget_too_small_for_a_context_is_refused_before_the_session() -> None:
    with pytest.raises(ModelError, match="a CUDA context alone takes"):
        provider_options("cuda", 100, tensorrt=False)


def test_the_callers_stream_goes_to_every_provider_on_the_device() -> None:
    names = dict(provider_options("cuda", None, tensorrt=True, stream=0x55D0))
    assert names["CUDAExecutionProvider"]["user_compute_stream"] == str(0x55D0)
    assert names["TensorrtExecutionProvider"]["user_compute_stream"] == str(0x55D0)
    assert names["CPUExecutionProvider"] == {}
    assert "user_compute_stream" not in dict(provider_options("cuda", None, tensorrt=False))["CUDAExecutionProvider"]
    assert provider_options("cpu", None, tensorrt=False, stream=1) == [("CPUExecutionProvider", {})]
