"""Errors of CUDA libraries, raised by a double in a real worker; no device is needed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engines.build import write_python
from engines.real_worker import serving
from mmsup.ipc import exit_codes
from mmsup.ipc.specs import ModelSpec, TensorSpec

pytestmark = pytest.mark.slow
MODEL = """
import numpy as np

class OutOfMemoryError(RuntimeError):  # as torch names it
    pass


class Model:
    def infer(self, inputs):
        x = inputs["x"]
        if (x == 666.0).any():
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if len(x) > 2 or (x < 0.0).any():
            raise OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return {"y": x, "rows": np.full((len(x), 1), len(x))}
"""


@pytest.fixture
def on_device(tmp_path: Path) -> ModelSpec:
    outputs = (TensorSpec("y", "FP32", (1,)), TensorSpec("rows", "INT64", (1,)))
    made = write_python(tmp_path, "m", MODEL, (TensorSpec("x", "FP32", (1,)),), outputs, max_batch=4)
    return replace(made, device="cuda:0")


def rows(*values: float) -> dict[str, np.ndarray[tuple[int, int], np.dtype[np.float32]]]:
    return {"x": np.array([[each] for each in values], np.float32)}


@pytest.mark.fault("F18")
def test_memory_that_a_device_refuses_is_asked_for_again_by_halves_and_then_said(
    on_device: ModelSpec, tmp_path: Path
) -> None:
    with serving(on_device, tmp_path) as (life, gateway):
        reply = gateway.request(rows(1.0, 2.0, 3.0, 4.0))
        assert gateway.array(reply, "y").ravel().tolist() == [1.0, 2.0, 3.0, 4.0]
        assert gateway.array(reply, "rows").ravel().tolist() == [2, 2, 2, 2]
        for _ in range(3):
            assert gateway.request(rows(-1.0)).code == "gpu_oom"
        assert gateway.array(gateway.request(rows(5.0)), "y").tolist() == [[5.0]]
        assert life.process.poll() is None
        assert life.page.read().refused == 3


@pytest.mark.fault("F19")
def test_a_fault_that_ends_the_context_ends_the_worker_with_its_own_status(
    on_device: ModelSpec, tmp_path: Path
) -> None:
    with serving(on_device, tmp_path) as (life, gateway):
        gateway.send(gateway.infer(rows(666.0)))
        assert life.wait_exit() == exit_codes.DEVICE_LOST
        assert gateway.reply_within(1.0) is None
        assert "the CUDA context is lost" in life.log()
