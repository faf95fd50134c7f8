"""An engine whose clients see other shapes than its model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from mmsup.ipc.specs import Metadata, ModelSpec, TensorSpec
from mmsup.ipc.tensors.numpy_arrays import Array
from mmsup.worker.execution.engine import NO_BUFFERS, OutputBuffers
from mmsup.worker.execution.reshaped_engine import reshaped, with_reshapes


class Identity:
    """`y = x`, which remembers what it got."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def load(self, spec: ModelSpec) -> Metadata:
        return Metadata(spec.platform, spec.max_batch_size, spec.inputs, spec.outputs)

    def infer(
        self, inputs: Mapping[str, Array], wanted: Sequence[str], buffers: OutputBuffers = NO_BUFFERS
    ) -> Mapping[str, Array]:
        self.shapes.append(inputs["x"].shape)
        return {"y": inputs["x"]}

    def shrink(self) -> None: ...

    def device_bytes(self) -> int:
        return 0

    def unload(self) -> None: ...


def spec(max_batch: int, dims: tuple[int, ...], shape: list[int]) -> ModelSpec:
    reshape: dict[str, Any] = {"shape": shape} if shape else {}  # as protobuf leaves out what is empty
    config = {
        "input": [{"name": "x", "dims": list(dims), "reshape": reshape}],
        "output": [{"name": "y", "dims": list(dims), "reshape": reshape}],
    }
    inputs, outputs = (TensorSpec("x", "FP32", dims),), (TensorSpec("y", "FP32", dims),)
    return ModelSpec("m", "1", "/m/1", "model.onnx", "ort", "p", max_batch, inputs, outputs, config=config)


@pytest.mark.parametrize(
    ("max_batch", "dims", "shape", "sent", "model_sees"),
    [
        (0, (1,), [], (1,), ()),
        (8, (1,), [], (4, 1), (4,)),
        (0, (4, 3), [12], (4, 3), (12,)),
        (8, (-1, 4), [-1, 2, 2], (3, 5, 4), (3, 5, 2, 2)),
    ],
)
def test_a_model_with_reshape_gets_its_own_shape_and_clients_theirs(
    max_batch: int, dims: tuple[int, ...], shape: list[int], sent: tuple[int, ...], model_sees: tuple[int, ...]
) -> None:
    inner, own = Identity(), spec(max_batch, dims, shape)
    engine = with_reshapes(inner, own)
    metadata = engine.load(own)
    assert metadata.inputs[0].shape == metadata.outputs[0].shape == dims
    array = np.arange(int(np.prod(sent)), dtype=np.float32).reshape(sent)
    made = engine.infer({"x": array}, ("y",))["y"]
    assert inner.shapes == [model_sees]
    assert (made == array).all()
    assert made.shape == sent


def test_an_output_of_another_rank_than_its_reshape_is_an_error_with_both_shapes() -> None:
    own = spec(0, (4,), [2, 2])
    engine = with_reshapes(Identity(), own)
    engine.load(own)
    with pytest.raises(ValueError, match="cannot reshape"):
        engine.infer({"x": np.zeros(5, np.float32)}, ("y",))


def test_an_engine_without_reshapes_stays_itself() -> None:
    inner = Identity()
    assert with_reshapes(inner, ModelSpec("m", "1", "/m/1", "model.onnx", "ort", "p")) is inner


def test_open_sizes_are_taken_over_in_order() -> None:
    assert reshaped((9, 2, 7, 3), (-1, 7, -1), (-1, 7, 1, -1), 1) == (9, 2, 7, 1, 3)
