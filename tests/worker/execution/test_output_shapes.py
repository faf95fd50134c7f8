"""What outputs will be, before the run."""

from __future__ import annotations

import numpy as np

from mmsup.ipc.specs import Metadata, TensorSpec
from mmsup.ipc.tensors.numpy_arrays import Array
from mmsup.worker.execution.batch_arrays import Arrays
from mmsup.worker.execution.output_shapes import SHAPES_LIMIT, OutputShapePredictor

FIXED = TensorSpec("y", "FP32", (2, 3))
OPEN = TensorSpec("z", "INT64", (-1,))
TEXT = TensorSpec("text", "BYTES", (1,))


def foresight(*outputs: TensorSpec, batch: int = 0) -> OutputShapePredictor:
    return OutputShapePredictor(Metadata("p", batch, (TensorSpec("x", "FP32", (-1,)),), outputs))


def job(*shape: int, **others: Array) -> Arrays:
    return {"x": np.zeros(shape, np.float32), **others}


def test_a_declared_shape_is_known_and_follows_the_rows_of_the_job() -> None:
    assert foresight(FIXED).predict(job(5), ("y",)) == [("y", "FP32", (2, 3))]
    assert foresight(FIXED, batch=8).predict(job(5, 1), ("y",)) == [("y", "FP32", (5, 2, 3))]
    assert foresight(FIXED, TEXT).predict(job(5), ("text", "y")) == [("text", "BYTES", (1,)), ("y", "FP32", (2, 3))]


def test_an_open_shape_is_known_after_a_run_on_the_same_shapes() -> None:
    seer = foresight(FIXED, OPEN)
    assert seer.predict(job(5), ("y", "z")) == [("y", "FP32", (2, 3))]
    assert seer.predict(job(5), ("z", "y")) == []
    seer.learn(job(5), {"z": np.zeros(7, np.int64)})
    assert seer.predict(job(5), ("z", "y")) == [("z", "INT64", (7,)), ("y", "FP32", (2, 3))]
    assert seer.predict(job(6), ("z",)) == []
    seer.learn(job(5), {"z": np.zeros(9, np.int64)})
    assert seer.predict(job(5), ("z",)) == [("z", "INT64", (9,))]


def test_an_output_that_was_not_asked_for_stays_as_it_is_known() -> None:
    seer = foresight(OPEN, TensorSpec("w", "FP32", (-1,)))
    seer.learn(job(5), {"z": np.zeros(7, np.int64)})
    seer.learn(job(5), {"w": np.zeros(2, np.float32)})
    assert [shape for _, _, shape in seer.predict(job(5), ("z", "w"))] == [(7,), (2,)]


def test_the_order_of_inputs_does_not_matter() -> None:
    seer = foresight(OPEN)
    a, b = np.zeros(1, np.float32), np.zeros(2, np.float32)
    seer.learn({"a": a, "b": b}, {"z": np.zeros(7, np.int64)})
    assert seer.predict({"b": b, "a": a}, ("z",))
    assert not seer.predict({"a": b, "b": a}, ("z",))


def test_what_is_remembered_is_bounded_and_the_latest_stay() -> None:
    seer = foresight(OPEN)
    for size in range(SHAPES_LIMIT + 1):
        seer.learn(job(size), {"z": np.zeros(size, np.int64)})
        seer.learn(job(0), {"z": np.zeros(0, np.int64)})
    assert seer.predict(job(0), ("z",))
    assert not seer.predict(job(1), ("z",))
    assert seer.predict(job(SHAPES_LIMIT), ("z",))
