"""Torch's share of a device, by a stand-in for torch: what it is told, and when it is left alone."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from engines.build import write_python
from mmsup.ipc.errors import ModelError
from mmsup.ipc.specs import ModelSpec, TensorSpec
from mmsup.worker.engines.gpu_memory_limit import enforce_gpu_memory
from mmsup.worker.engines.python_model import PythonModelEngine
from mmsup.worker.execution.device_errors import CONTEXT_BYTES, RESERVE_BYTES

GIB = 1 << 30
X, Y = TensorSpec("x", "FP32", (1,)), TensorSpec("y", "FP32", (1,))
LAZY = """
class Model:
    def load(self, context):
        import torch

        self.fractions = list(torch.told)

    def infer(self, inputs):
        return {"y": inputs["x"]}
"""


@pytest.fixture
def fractions(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What a torch that sees a device of 16 GiB was told."""
    told: list[float] = []
    cuda = SimpleNamespace(
        is_available=lambda: True,
        get_device_properties=lambda device: SimpleNamespace(total_memory=16 * GIB),
        set_per_process_memory_fraction=lambda fraction, device: told.append(fraction),
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda, told=told))
    return told


@pytest.fixture
def spec(tmp_path: Path) -> ModelSpec:
    return replace(write_python(tmp_path, "m", LAZY, (X,), (Y,)), device="cuda:0", gpu_memory_bytes=4 * GIB)


def test_the_allocator_gets_what_context_and_libraries_leave(spec: ModelSpec, fractions: list[float]) -> None:
    enforce_gpu_memory(spec)
    assert fractions == [(4 * GIB - CONTEXT_BYTES - RESERVE_BYTES) / (16 * GIB)]


@pytest.mark.parametrize(("device", "budget"), [("cpu", 4 * GIB), ("cuda:0", None)])
def test_nothing_is_held_where_nothing_is_asked_for(
    spec: ModelSpec, fractions: list[float], device: str, budget: int | None
) -> None:
    enforce_gpu_memory(replace(spec, device=device, gpu_memory_bytes=budget))
    assert fractions == []


def test_a_share_that_holds_no_context_is_refused(spec: ModelSpec, fractions: list[float]) -> None:
    with pytest.raises(ModelError) as refused:
        enforce_gpu_memory(replace(spec, gpu_memory_bytes=RESERVE_BYTES))
    assert refused.value.code == "does_not_fit"
    assert fractions == []


def test_torch_is_not_imported_for_a_model_that_has_none(spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    enforce_gpu_memory(spec)
    assert "torch" not in sys.modules


def test_a_class_of_the_users_has_its_share_before_and_after_it_loads(spec: ModelSpec, fractions: list[float]) -> None:
    engine = PythonModelEngine()
    engine.load(spec)
    assert len(fractions) == 2
    engine.unload()
