"""A result against the outputs that its model declares."""

from __future__ import annotations

import numpy as np
import pytest

from mmsup.ipc.specs import Metadata, ModelSpec, TensorSpec
from mmsup.worker.execution.declared_outputs import DeclaredOutputs

SPEC = ModelSpec("m", "1", "/m/1", "model.py", "custom", "python")


@pytest.mark.parametrize(
    ("declared", "shape", "told"),
    [
        ((-1,), (3,), ""),
        ((-1,), (0,), ""),
        ((2,), (3,), ""),  # a size that files often give wrongly, and onnxruntime warns of
        ((-1,), (0, 4), "model 'm': output 'y' is declared with the shape [-1], but has [0, 4]"),
        ((-1, 4), (4,), "model 'm': output 'y' is declared with the shape [-1, 4], but has [4]"),
        ((-1,), (), "model 'm': output 'y' is declared with the shape [-1], but has []"),
        ((), (), ""),
        ((), (2, 3), ""),  # an ONNX file that leaves the shape out looks like this
    ],
)
def test_an_output_has_as_many_axes_as_are_declared(
    declared: tuple[int, ...], shape: tuple[int, ...], told: str
) -> None:
    outputs = DeclaredOutputs(SPEC, Metadata("python", 0, (), (TensorSpec("y", "FP32", declared),)))
    failure = outputs.failure({"y": np.zeros(shape, np.float32)}, (), {})
    assert (failure.text if failure else "") == told
    assert failure is None or failure.is_contradiction
