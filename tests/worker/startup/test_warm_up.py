"""The warm-up run."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from mmsup.ipc.memory.status_page import StatusPageWriter, make_status_page
from mmsup.ipc.specs import Metadata, ModelSpec, TensorSpec
from mmsup.ipc.tensors.numpy_arrays import Array
from mmsup.worker.execution.engine import NO_BUFFERS, OutputBuffers
from mmsup.worker.execution.executor import Executor
from mmsup.worker.execution.model_errors import ModelFailure
from mmsup.worker.startup.warm_up import placeholder_inputs, wants_warm_up, warm_up

SPEC = ModelSpec("m", "1", "/m/1", "model.onnx", "ort", "onnxruntime_onnx")
FIXED = (TensorSpec("x", "FP32", (2,)),)
OPEN = (TensorSpec("x", "FP32", (-1,)),)
TEXT = (TensorSpec("x", "BYTES", (1,)),)


class Engine:
    """Raises or returns what the test says."""

    def __init__(self, result: Mapping[str, Array] | Exception) -> None:
        self.result = result

    def load(self, spec: ModelSpec) -> Metadata:
        raise NotImplementedError

    def infer(
        self, inputs: Mapping[str, Array], wanted: Sequence[str], buffers: OutputBuffers = NO_BUFFERS
    ) -> Mapping[str, Array]:
        if isinstance(self.result, Exception):
            raise self.result
        return self.result

    def shrink(self) -> None: ...

    def device_bytes(self) -> int:
        return 0

    def unload(self) -> None: ...


@pytest.fixture
def page() -> Iterator[int]:
    fd = make_status_page()
    yield fd
    os.close(fd)


def warmed(page: int, inputs: tuple[TensorSpec, ...], answer: Mapping[str, Array] | Exception) -> ModelFailure | None:
    metadata = Metadata("p", 0, inputs, (TensorSpec("y", "FP32", (-1,)),))
    return warm_up(Executor(Engine(answer), SPEC, metadata, StatusPageWriter(page)))


def test_a_model_that_answers_may_serve(page: int) -> None:
    assert warmed(page, FIXED, {"y": np.zeros(1, np.float32)}) is None


def test_a_model_that_refuses_the_only_shape_it_declares_is_a_failed_load(page: int) -> None:
    failure = warmed(page, FIXED, RuntimeError("no"))
    assert failure == ModelFailure("inference_failed", "in its warm-up run, model 'm' failed: no")


@pytest.mark.parametrize("inputs", [OPEN, TEXT])
def test_a_model_that_refuses_guessed_inputs_may_serve(page: int, inputs: tuple[TensorSpec, ...]) -> None:
    assert warmed(page, inputs, RuntimeError("a kernel of 3 needs 3")) is None


def test_placeholders_have_size_one_where_it_is_open_and_leave_out_optional_inputs() -> None:
    inputs = (
        TensorSpec("x", "INT64", (-1, 3)),
        TensorSpec("s", "BYTES", (2,)),
        TensorSpec("o", "FP32", (1,), optional=True),
    )
    made = placeholder_inputs(Metadata("p", 8, inputs, ()))
    assert {name: (array.shape, array.dtype.kind) for name, array in made.items()} == {
        "x": ((1, 1, 3), "i"),
        "s": ((1, 2), "O"),
    }
    assert made["s"].reshape(-1)[0] == b""


def test_a_users_class_is_not_called_by_default() -> None:
    custom = replace(SPEC, engine="custom")
    assert wants_warm_up(SPEC)
    assert not wants_warm_up(custom)
    assert wants_warm_up(replace(custom, parameters={"warmup": "true"}))
    assert not wants_warm_up(replace(SPEC, parameters={"warmup": "false"}))
