"""The limit of device memory: its arithmetic, and what a fake torch is given."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from engines.build import write_python
from mmsup.ipc.errors import ModelError
from mmsup.ipc.specs import ModelSpec, TensorSpec
from mmsup.worker.engines.gpu_memory_limit import (
    CONTEXT_BYTES,
    RESERVE_BYTES,
    arena_limit,
    enforce_gpu_memory,
    memory_fraction,
)
from mmsup.worker.engines.python_model import PythonModelEngine

GIB = 1 << 30
X, Y = TensorSpec("x", "FP32", (1,)), TensorSpec("y", "FP32", (1,))
LAZY = """
class Model:
    def load(self, context):
        import torch

        self.fractions = list(torch.fractions)

    def infer(self, inputs):
        return {"y": inputs["x"]}
"""


@pytest.fixture
def fractions(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The fractions that a torch that sees a device of 16 GiB was given."""
    fractions: list[float] = []
    cuda = SimpleNamespace(
        is_available=lambda: True,
        get_device_properties=lambda device: SimpleNamespace(total_memory=16 * GIB),
        set_per_process_memory_fraction=lambda fraction, device: fractions.append(fraction),
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda, fractions=fractions))
    return fractions


@pytest.fixture
def spec(tmp_path: Path) -> ModelSpec:
    return replace(write_python(tmp_path, "m", LAZY, (X,), (Y,)), device="cuda:0", gpu_memory_bytes=4 * GIB)


def test_context_and_library_workspaces_come_off_the_budget() -> None:
    assert arena_limit(4 << 30) == (4 << 30) - CONTEXT_BYTES - RESERVE_BYTES
    assert memory_fraction(4 << 30, 16 << 30) == arena_limit(4 << 30) / (16 << 30)
    assert memory_fraction(64 << 30, 16 << 30) == 1.0


def test_a_budget_below_a_context_is_refused() -> None:
    with pytest.raises(ModelError, match="a CUDA context alone takes") as refused:
        arena_limit(CONTEXT_BYTES)
    assert refused.value.code == "does_not_fit"


def test_the_allocator_gets_what_context_and_libraries_leave(spec: ModelSpec, fractions: list[float]) -> None:
    enforce_gpu_memory(spec)
    assert fractions == [(4 * GIB - CONTEXT_BYTES - RESERVE_BYTES) / (16 * GIB)]


@pytest.mark.parametrize(("device", "budget"), [("cpu", 4 * GIB), ("cuda:0", None)])
def test_no_limit_is_set_without_a_device_or_a_budget(
    spec: ModelSpec, fractions: list[float], device: str, budget: int | None
) -> None:
    enforce_gpu_memory(replace(spec, device=device, gpu_memory_bytes=budget))
    assert fractions == []


def test_a_budget_below_a_context_is_a_failed_load(spec: ModelSpec, fractions: list[float]) -> None:
    with pytest.raises(ModelError) as refused:
        enforce_gpu_memory(replace(spec, gpu_memory_bytes=RESERVE_BYTES))
    assert refused.value.code == "does_not_fit"
    assert fractions == []


def test_torch_is_not_imported_for_a_model_that_has_none(spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    enforce_gpu_memory(spec)
    assert "torch" not in sys.modules


def test_a_users_class_is_limited_before_and_after_it_loads(spec: ModelSpec, fractions: list[float]) -> None:
    engine = PythonModelEngine()
    engine.load(spec)
    assert len(fractions) == 2
    engine.unload()
