"""The warm-up run."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmsup.ipc.errors import ModelError
from mmsup.ipc.memory.status_page import StatusPageWriter, make_status_page
from mmsup.ipc.specs import WARM_UP_STRINGS_BYTES, Metadata, ModelSpec, TensorSpec
from mmsup.ipc.tensors.datatypes import pack_strings
from mmsup.ipc.tensors.numpy_arrays import Array
from mmsup.worker.execution.engine import NO_BUFFERS, OutputBuffers
from mmsup.worker.execution.executor import Executor
from mmsup.worker.execution.model_errors import ModelFailure
from mmsup.worker.startup.warm_up import placeholder_inputs, wants_warm_up, warm_up
from mmsup.worker.startup.warm_up_samples import sample_inputs

SPEC = ModelSpec("m", "1", "/m/1", "model.onnx", "ort", "onnxruntime_onnx")
FIXED = (TensorSpec("x", "FP32", (2,)),)
OPEN = (TensorSpec("x", "FP32", (-1,)),)
TEXT = (TensorSpec("x", "BYTES", (1,)),)


class Engine:
    """Raises or returns what the test says."""

    def __init__(self, result: Mapping[str, Array] | Exception) -> None:
        self.result = result
        self.seen: list[dict[str, Array]] = []

    def load(self, spec: ModelSpec) -> Metadata:
        raise NotImplementedError

    def infer(
        self, inputs: Mapping[str, Array], wanted: Sequence[str], buffers: OutputBuffers = NO_BUFFERS
    ) -> Mapping[str, Array]:
        self.seen.append(dict(inputs))
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


def warmed(
    page: int,
    inputs: tuple[TensorSpec, ...],
    answer: Mapping[str, Array] | Exception,
    **options: Any,  # fields of the spec
) -> ModelFailure | None:
    metadata = Metadata("p", 0, inputs, (TensorSpec("y", "FP32", (-1,)),))
    return warm_up(Executor(Engine(answer), replace(SPEC, **options), metadata, StatusPageWriter(page)))


def test_a_model_that_answers_may_serve(page: int) -> None:
    assert warmed(page, FIXED, {"y": np.zeros(1, np.float32)}) is None


def test_a_model_that_refuses_zeros_serves_and_the_log_names_the_parameter(
    page: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING", logger="mmsup.worker"):
        assert warmed(page, FIXED, RuntimeError("division by zero")) is None
    assert "`warmup: false`" in caplog.text
    assert "division by zero" in caplog.text


def test_a_warm_up_that_was_asked_for_and_fails_is_a_failed_load_that_names_the_parameter(page: int) -> None:
    failure = warmed(page, FIXED, RuntimeError("no"), parameters={"warmup": "true"})
    text = "in its warm-up run on zeros (parameter `warmup`), model 'm' failed: no"
    assert failure == ModelFailure("inference_failed", text)


def test_a_result_that_contradicts_its_declaration_is_a_failed_load_though_nobody_asked(page: int) -> None:
    failure = warmed(page, FIXED, {"y": np.zeros(1, np.float64)})
    assert failure is not None
    assert "declared as FP32, but is FP64" in failure.text


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


SAMPLE_INPUT = {"data_type": "TYPE_FP32", "dims": [2], "zero_data": True}


def warmed_by(
    page: int, tmp_path: Path, sample: Any, max_batch: int = 0, answer: Mapping[str, Array] | Exception | None = None
) -> list[dict[str, Array]]:
    """What the engine got from a sample, JSON of the configuration; ModelError for a failure."""
    rows = sample.get("batch_size", 1)
    engine = Engine({"y": np.zeros((rows, 1) if max_batch else 1, np.float32)} if answer is None else answer)
    spec = replace(SPEC, directory=str(tmp_path / "1"), max_batch_size=max_batch, config={"model_warmup": [sample]})
    metadata = Metadata("p", max_batch, FIXED, (TensorSpec("y", "FP32", (-1,)),))
    failure = warm_up(Executor(engine, spec, metadata, StatusPageWriter(page)))
    if failure is not None:
        raise ModelError(failure.code, failure.text)
    return engine.seen


def test_samples_of_model_warmup_run_as_often_as_they_say_before_the_model_is_ready(page: int, tmp_path: Path) -> None:
    sample = {"name": "s", "batch_size": 3, "count": 2, "inputs": {"x": SAMPLE_INPUT}}
    seen = warmed_by(page, tmp_path, sample, 8)
    assert [each["x"].shape for each in seen] == [(3, 2), (3, 2)]
    assert not seen[0]["x"].any()


def test_a_sample_of_random_data_is_not_zeros(page: int, tmp_path: Path) -> None:
    (seen,) = warmed_by(page, tmp_path, {"inputs": {"x": {**SAMPLE_INPUT, "random_data": True}}})
    assert ((seen["x"] > 0) & (seen["x"] < 1)).all()


@pytest.mark.parametrize("rows", [1, 2])
def test_a_sample_from_a_file_of_one_row_fills_each_row_and_one_of_all_rows_is_taken_whole(
    page: int, tmp_path: Path, rows: int
) -> None:
    (tmp_path / "warmup").mkdir()
    values = np.arange(1, 1 + 2 * rows, dtype=np.float32)
    (tmp_path / "warmup" / "x.bin").write_bytes(values.tobytes())
    given = {"data_type": "TYPE_FP32", "dims": [2], "input_data_file": "x.bin"}
    (seen,) = warmed_by(page, tmp_path, {"batch_size": 2, "inputs": {"x": given}}, 8)
    assert seen["x"].tolist() == [[1, 2], [1, 2] if rows == 1 else [3, 4]]


def test_a_sample_that_the_model_refuses_is_a_failed_load_that_names_the_sample(page: int, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"in its warm-up sample model_warmup\[0\] 's', model 'm' failed: no"):
        warmed_by(page, tmp_path, {"name": "s", "inputs": {"x": SAMPLE_INPUT}}, answer=RuntimeError("no"))


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ({}, "it has no input 'x'"),
        ({"x": SAMPLE_INPUT, "z": SAMPLE_INPUT}, "the model has no input 'z'"),
        ({"x": {**SAMPLE_INPUT, "data_type": "TYPE_FP64"}}, "is FP64 there, and FP32 in the model"),
        ({"x": {**SAMPLE_INPUT, "dims": [3]}}, r"is \[3\] there, and \[2\] in the model"),
        ({"x": {"data_type": "TYPE_FP32", "dims": [2], "input_data_file": "no"}}, "there is no file warmup/no"),
        (
            {"x": {"data_type": "TYPE_FP32", "dims": [2], "input_data_file": "huge"}},
            f"warmup/huge holds {1 << 40} bytes, and at most 8 are read for this input",
        ),
    ],
)
def test_a_sample_that_is_not_of_this_model_is_a_failed_load(page: int, tmp_path: Path, inputs: Any, text: str) -> None:
    (tmp_path / "warmup").mkdir()
    with (tmp_path / "warmup" / "huge").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ModelError, match=text):
        warmed_by(page, tmp_path, {"name": "s", "inputs": inputs})


@pytest.mark.parametrize(
    ("strings", "text"),
    [
        ([b""] * 3, "warmup/x holds more than 2 elements, and input 'x' takes 2"),
        ([b"x" * WARM_UP_STRINGS_BYTES], f"at most {WARM_UP_STRINGS_BYTES} are read for this input"),
    ],
)
def test_a_sample_of_too_many_or_too_long_strings_is_not_read(tmp_path: Path, strings: list[bytes], text: str) -> None:
    (tmp_path / "warmup").mkdir()
    (tmp_path / "warmup" / "x").write_bytes(pack_strings(strings))
    taken = Metadata("python", 0, (TensorSpec("x", "BYTES", (2,)),), ())
    sample = {"inputs": {"x": {"data_type": "TYPE_STRING", "dims": [2], "input_data_file": "x"}}}
    with pytest.raises(ValueError, match=text):
        sample_inputs(sample, taken, str(tmp_path / "1"))
