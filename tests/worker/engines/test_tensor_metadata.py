"""Tensors of the configuration merged with those of the artifact."""

from __future__ import annotations

import pytest

from mmsup.ipc.errors import ModelError
from mmsup.ipc.specs import ModelSpec, TensorSpec
from mmsup.worker.engines.tensor_metadata import configured_metadata, merge_metadata

X = TensorSpec("x", "FP32", (-1, 4))
Y = TensorSpec("y", "FP32", (-1, 2))


def spec(batch: int = 0, inputs: tuple[TensorSpec, ...] = (), outputs: tuple[TensorSpec, ...] = ()) -> ModelSpec:
    return ModelSpec("m", "1", "/m/1", "model.onnx", "ort", "onnxruntime_onnx", batch, inputs, outputs)


def test_without_a_configuration_the_artifact_declares_all() -> None:
    metadata = merge_metadata(spec(), [X], [Y])
    assert (metadata.inputs, metadata.outputs) == ((X,), (Y,))


def test_a_batching_model_leaves_the_batch_axis_out() -> None:
    metadata = merge_metadata(spec(8), [X], [Y])
    assert metadata.inputs == (TensorSpec("x", "FP32", (4,)),)
    assert metadata.outputs == (TensorSpec("y", "FP32", (2,)),)


def test_configuration_narrows_what_the_artifact_leaves_open() -> None:
    mine = TensorSpec("x", "FP32", (3, 4))
    assert merge_metadata(spec(0, (mine,)), [X], [Y]).inputs == (mine,)


def test_outputs_may_be_left_out_and_renamed_in_order_of_configuration() -> None:
    other = TensorSpec("z", "INT64", (-1,))
    assert merge_metadata(spec(0, (), (other,)), [X], [Y, other]).outputs == (other,)


def test_with_an_open_rank_in_the_artifact_the_configuration_counts() -> None:
    mine = TensorSpec("y", "FP32", (7,))
    assert merge_metadata(spec(8, (), (mine,)), [X], [TensorSpec("y", "FP32", ())]).outputs == (mine,)


@pytest.mark.parametrize(
    ("given", "inputs", "text"),
    [
        (spec(0, (TensorSpec("z", "FP32", (4,)),)), [X], "names input 'z', but the file has input 'x'"),
        (spec(0, (TensorSpec("x", "INT32", (-1, 4)),)), [X], "'x' is INT32 in its configuration, FP32 in the file"),
        (spec(0, (TensorSpec("x", "FP32", (-1, 5)),)), [X], "'x' is [-1, 5] in its configuration, [-1, 4] in the file"),
        (spec(8, (TensorSpec("x", "FP32", (5,)),)), [X], "[-1, 5] with the batch axis in its configuration"),
        (spec(0, (X,)), [X, Y], "leaves out input 'y', which the file demands"),
        (spec(8), [TensorSpec("x", "FP32", (1, 4))], "no variable first dimension to batch along"),
        (spec(8), [TensorSpec("x", "FP32", ())], "no variable first dimension to batch along"),
    ],
)
def test_a_contradiction_is_a_failed_load_that_names_both_sides(
    given: ModelSpec, inputs: list[TensorSpec], text: str
) -> None:
    with pytest.raises(ModelError) as caught:
        merge_metadata(given, inputs, [TensorSpec("y", "FP32", (-1, 2))])
    assert caught.value.code == "config_mismatch"
    assert caught.value.text.startswith("model 'm': ")
    assert text in caught.value.text


def test_an_artifact_that_declares_nothing_needs_a_configuration() -> None:
    assert configured_metadata(spec(0, (X,), (Y,)), "model.pt").inputs == (X,)
    with pytest.raises(ModelError, match="declare its inputs and outputs"):
        configured_metadata(spec(0, (X,)), "model.pt")


def test_a_wrong_name_among_right_ones_does_not_exchange_the_inputs_of_a_module() -> None:
    given = spec(0, (TensorSpec("mask", "FP32", (-1,)), TensorSpec("imag", "FP32", (-1,))), (Y,))
    with pytest.raises(ModelError, match=r"names input 'imag', but model\.pt takes inputs 'image', 'mask'"):
        configured_metadata(given, "model.pt", ("image", "mask"))
    assert configured_metadata(given, "model.pt", ("a", "b")).inputs == given.inputs  # by position


def test_a_module_without_a_declaration_is_refused_with_the_names_that_it_takes() -> None:
    with pytest.raises(ModelError, match="declare its inputs, which are inputs 'image', 'mask', and outputs in"):
        configured_metadata(spec(), "model.pt", ("image", "mask"))
