"""How an ONNX session uses memory: what may be assumed of the shapes of its inputs, and that outputs are the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmsup.ipc.specs import ModelSpec, TensorSpec

pytestmark = pytest.mark.slow  # it imports onnx and onnxruntime

X = TensorSpec("x", "FP32", (3, 4))
SPEC = ModelSpec("m", "1", "/m/1", "model.onnx", "ort", "onnxruntime_onnx", inputs=(X,))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"max_batch_size": 16}, True),
        ({"inputs": (X, replace(X, shape=()))}, True),
        ({"inputs": (X, replace(X, shape=(3, -1)))}, False),
        ({"inputs": ()}, False),
        ({"device": "cuda:0"}, False),
    ],
    ids=["fixed", "batches", "a scalar too", "an open size", "not configured", "on a device"],
)
def test_a_model_has_few_shapes_if_all_sizes_of_its_inputs_are_configured(
    changes: dict[str, object], expected: bool
) -> None:
    from mmsup.worker.engines.ort import has_few_shapes

    assert has_few_shapes(replace(SPEC, **changes)) is expected  # type: ignore[arg-type] # by the table


def test_outputs_are_the_same_whether_a_model_has_few_shapes_or_not(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from mmsup.worker.engines.ort import OrtEngine

    weight = np.random.default_rng(1).standard_normal((4, 4), dtype=np.float32)
    nodes, name = [], "x"
    for layer in range(10):  # in place, not in place, another view, and one that is needed later
        nodes.append(helper.make_node("MatMul", [name, "w"], [f"m{layer}"]))
        nodes.append(helper.make_node("Tanh", [f"m{layer}"], [f"t{layer}"]))
        nodes.append(helper.make_node("Reshape", [f"t{layer}", "shape"], [f"v{layer}"]))
        nodes.append(helper.make_node("Add", [f"v{layer}", "x"], [name := f"a{layer}"]))
    nodes.append(helper.make_node("Identity", [name], ["y"]))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])]
    constants = [
        numpy_helper.from_array(weight, "w"),
        numpy_helper.from_array(np.array([-1, 4], np.int64), "shape"),
    ]
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "a.onnx")
    few = ModelSpec("m", "1", str(tmp_path), "a.onnx", "ort", "p", 8, inputs=(replace(X, shape=(4,)),))
    found: list[list[object]] = []
    for spec in (few, replace(few, inputs=())):
        engine = OrtEngine()
        engine.load(spec)
        runs = [np.arange(4 * rows, dtype=np.float32).reshape(rows, 4) for rows in (1, 8, 3, 8, 1)]
        found.append([engine.infer({"x": x}, ["y"])["y"].tolist() for x in runs])
    assert found[0] == found[1]
    expected = x = runs[0]
    for _ in range(10):
        expected = np.tanh(expected @ weight) + x
    assert np.allclose(np.array(found[0][0]), expected, atol=1e-5)
