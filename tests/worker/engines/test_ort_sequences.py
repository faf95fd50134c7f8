"""Sequences and maps of ONNX as tensors, by onnxruntime itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmsup.ipc.errors import ModelError
from mmsup.ipc.specs import Metadata, ModelSpec, TensorSpec
from mmsup.worker.engines.onnx_file import OnnxFacts, read_facts
from mmsup.worker.engines.ort_sequences import columns_of, stacked

pytestmark = pytest.mark.slow  # it imports onnx and onnxruntime

ROWS = np.arange(6, dtype=np.float32).reshape(2, 3)


def loaded(
    folder: Path, taken: list[Any], nodes: list[Any], outputs: list[Any], **options: Any
) -> tuple[Any, Metadata]:
    """The engine of a graph of nodes, by onnx.helper."""
    import onnx
    from onnx import helper

    from mmsup.worker.engines.ort import OrtEngine

    initializers = options.pop("initializers", [])
    graph = helper.make_graph(nodes, "g", taken, outputs, initializers)
    versions = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(graph, opset_imports=versions, ir_version=9), folder / "model.onnx")
    engine = OrtEngine()
    return engine, engine.load(ModelSpec("m", "1", str(folder), "model.onnx", "ort", "p", **options))


def floats(name: str, shape: list[Any] | None) -> Any:
    from onnx import TensorProto, helper

    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def float_sequence(name: str, shape: list[Any] | None) -> Any:
    from onnx import TensorProto, helper

    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, shape))
    return helper.make_value_info(name, kind)


def zip_map(folder: Path, labels: list[Any], **options: Any) -> tuple[Any, Metadata]:
    """What skl2onnx exports by default: `p`, a sequence of maps from class to FP32."""
    from onnx import TensorProto, helper

    is_number = isinstance(labels[0], int)
    attribute: dict[str, Any] = {"classlabels_int64s" if is_number else "classlabels_strings": labels}
    node = helper.make_node("ZipMap", ["x"], ["p"], domain="ai.onnx.ml", **attribute)
    value = helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    kind = helper.make_map_type_proto(TensorProto.INT64 if is_number else TensorProto.STRING, value)
    made = helper.make_value_info("p", helper.make_sequence_type_proto(kind))
    return loaded(folder, [floats("x", [None, len(labels)])], [node], [made], **options)


@pytest.mark.parametrize("labels", [[2, 0, -1], ["setosa", "virginica", "é"]])
def test_a_zip_map_is_served_as_a_tensor_with_the_classes_as_labels(tmp_path: Path, labels: list[Any]) -> None:
    engine, metadata = zip_map(tmp_path, labels)
    assert metadata.outputs == (TensorSpec("p", "FP32", (-1, 3)),)
    assert metadata.labels == {"p": tuple(map(str, labels))}
    made = engine.infer({"x": ROWS}, ("p",))["p"]
    assert made.dtype == np.float32
    assert (made == ROWS).all()
    assert engine.infer({"x": ROWS[:0]}, ("p",))["p"].shape == (0, 3)


def test_a_zip_map_batches_along_its_rows(tmp_path: Path) -> None:
    engine, metadata = zip_map(tmp_path, [0, 1, 2], max_batch_size=8)
    assert metadata.outputs == (TensorSpec("p", "FP32", (3,)),)
    assert engine.infer({"x": ROWS}, ("p",))["p"].shape == (2, 3)


def test_sequences_of_tensors_are_served_stacked(tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("SequenceConstruct", ["a", "b"], ["s"]),
        helper.make_node("SequenceAt", ["t", "i"], ["u"]),
    ]
    inputs = [floats("a", [2]), floats("b", [2]), float_sequence("t", [None])]
    inputs.append(helper.make_tensor_value_info("i", TensorProto.INT64, []))
    engine, metadata = loaded(tmp_path, inputs, nodes, [float_sequence("s", [2]), floats("u", None)])
    assert metadata.inputs[2].shape == (-1, -1)
    assert metadata.outputs[0].shape == (-1, 2)
    given = {"a": ROWS[0, :2], "b": ROWS[1, :2], "t": ROWS, "i": np.array(1)}
    made = engine.infer(given, ("s", "u"))
    assert (made["s"] == ROWS[:, :2]).all()
    assert (made["u"] == ROWS[1]).all()


def test_a_sequence_in_a_model_that_batches_is_a_failed_load_that_says_what_to_set(tmp_path: Path) -> None:
    from onnx import helper

    node = helper.make_node("SequenceConstruct", ["a"], ["s"])
    with pytest.raises(ModelError, match="set max_batch_size to 0"):
        loaded(tmp_path, [floats("a", [None, 2])], [node], [float_sequence("s", [None, 2])], max_batch_size=4)


def test_an_initializer_that_is_an_input_too_may_be_sent_or_left_out(tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    options: dict[str, Any] = {
        "initializers": [helper.make_tensor("b", TensorProto.FLOAT, [1], [10.0])],
        "inputs": (TensorSpec("a", "FP32", (1,)), TensorSpec("b", "FP32", (1,), optional=True)),
    }
    node = helper.make_node("Add", ["a", "b"], ["y"])
    engine, metadata = loaded(tmp_path, [floats("a", [1]), floats("b", [1])], [node], [floats("y", [1])], **options)
    assert [each.optional for each in metadata.inputs] == [False, True]
    one = np.ones(1, np.float32)
    assert engine.infer({"a": one}, ("y",))["y"] == [11]
    assert engine.infer({"a": one, "b": one}, ("y",))["y"] == [2]


def test_an_input_that_the_file_needs_cannot_be_optional(tmp_path: Path) -> None:
    from onnx import helper

    node = helper.make_node("Identity", ["a"], ["y"])
    optional = (TensorSpec("a", "FP32", (1,), optional=True),)
    with pytest.raises(ModelError, match="the file has no default for it"):
        loaded(tmp_path, [floats("a", [1])], [node], [floats("y", [1])], inputs=optional)


def test_a_scalar_beside_a_bf16_tensor_stays_a_scalar(tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    from mmsup.ipc.tensors.numpy_arrays import NUMPY

    inputs = [helper.make_tensor_value_info("a", TensorProto.BFLOAT16, []), floats("s", [])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.BFLOAT16, []), floats("z", [])]
    nodes = [helper.make_node("Identity", ["a"], ["y"]), helper.make_node("Identity", ["s"], ["z"])]
    engine, _ = loaded(tmp_path, inputs, nodes, outputs)
    made = engine.infer({"a": np.array(1.5, NUMPY["BF16"]), "s": np.array(2.5, np.float32)}, ("y", "z"))
    assert (made["y"].shape, made["z"].shape) == ((), ())
    assert (float(made["y"]), float(made["z"])) == (1.5, 2.5)


def test_what_cannot_be_one_tensor_says_why() -> None:
    with pytest.raises(ValueError, match="differ in their keys"):
        columns_of([{"a": 1.0}, {"a": 1.0, "b": 2.0}], (), np.dtype(np.float32))
    with pytest.raises(ValueError, match=r"\[1\] and \[2\], which cannot be stacked"):
        stacked([np.zeros(1), np.zeros(2)], (-1,), np.dtype(np.float64))


@pytest.mark.parametrize("data", [b"", b"ONNX?", b"\x3a\xff\xff\xff\xff\x0f", b"\x3a\x05\x0a\x03\x22\x7f\x00"])
def test_a_file_that_is_no_onnx_tells_nothing(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "f").write_bytes(data)
    assert read_facts(str(tmp_path / "f")) == OnnxFacts()
