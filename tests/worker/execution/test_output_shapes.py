"""Predicted outputs."""

from __future__ import annotations

import numpy as np

from mmsup.ipc.specs import Metadata, TensorSpec
from mmsup.ipc.tensors.numpy_arrays import Array
from mmsup.worker.execution.batch_arrays import Arrays
from mmsup.worker.execution.output_shapes import SHAPES_LIMIT, OutputShapePredictor

FIXED = TensorSpec("y", "FP32", (2, 3))
OPEN = TensorSpec("z", "INT64", (-1,))
TEXT = TensorSpec("text", "BYTES", (1,))


def predictor(*outputs: TensorSpec, batch: int = 0) -> OutputShapePredictor:
    return OutputShapePredictor(Metadata("p", batch, (TensorSpec("x", "FP32", (-1,)),), outputs))


def job(*shape: int, **others: Array) -> Arrays:
    return {"x": np.zeros(shape, np.float32), **others}


def test_a_declared_shape_is_known_and_has_the_rows_of_the_job() -> None:
    assert predictor(FIXED).predict(job(5), ("y",)) == [("y", "FP32", (2, 3))]
    assert predictor(FIXED, batch=8).predict(job(5, 1), ("y",)) == [("y", "FP32", (5, 2, 3))]
    assert predictor(FIXED, TEXT).predict(job(5), ("text", "y")) == [("text", "BYTES", (1,)), ("y", "FP32", (2, 3))]


def test_an_open_shape_is_known_after_a_run_on_the_same_shapes() -> None:
    shapes = predictor(FIXED, OPEN)
    assert shapes.predict(job(5), ("y", "z")) == [("y", "FP32", (2, 3))]
    assert shapes.predict(job(5), ("z", "y")) == []
    shapes.learn(job(5), {"z": np.zeros(7, np.int64)})
    assert shapes.predict(job(5), ("z", "y")) == [("z", "INT64", (7,)), ("y", "FP32", (2, 3))]
    assert shapes.predict(job(6), ("z",)) == []
    shapes.learn(job(5), {"z": np.zeros(9, np.int64)})
    assert shapes.predict(job(5), ("z",)) == [("z", "INT64", (9,))]


def test_an_output_that_was_not_wanted_stays_as_it_was_learned() -> None:
    shapes = predictor(OPEN, TensorSpec("w", "FP32", (-1,)))
    shapes.learn(job(5), {"z": np.zeros(7, np.int64)})
    shapes.learn(job(5), {"w": np.zeros(2, np.float32)})
    assert [shape for _, _, shape in shapes.predict(job(5), ("z", "w"))] == [(7,), (2,)]


def test_the_order_of_inputs_does_not_matter() -> None:
    shapes = predictor(OPEN)
    a, b = np.zeros(1, np.float32), np.zeros(2, np.float32)
    shapes.learn({"a": a, "b": b}, {"z": np.zeros(7, np.int64)})
    assert shapes.predict({"b": b, "a": a}, ("z",))
    assert not shapes.predict({"a": b, "b": a}, ("z",))


def test_the_learned_shapes_are_bounded_and_the_most_recent_stay() -> None:
    shapes = predictor(OPEN)
    for size in range(SHAPES_LIMIT + 1):
        shapes.learn(job(size), {"z": np.zeros(size, np.int64)})
        shapes.learn(job(0), {"z": np.zeros(0, np.int64)})
    assert shapes.predict(job(0), ("z",))
    assert not shapes.predict(job(1), ("z",))
    assert shapes.predict(job(SHAPES_LIMIT), ("z",))
