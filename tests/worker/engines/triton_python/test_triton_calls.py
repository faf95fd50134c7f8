"""Requests of a model of Triton's Python backend to other models."""

from __future__ import annotations

import asyncio
import textwrap
import threading
from collections.abc import Coroutine, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from engines.build import write_python
from mmsup.ipc.specs import TRITON_PYTHON, TensorSpec
from mmsup.ipc.tensors.numpy_arrays import Array
from mmsup.worker.calls.model_calls import ModelCalls
from mmsup.worker.engines.triton_python.engine import TritonPythonEngine
from mmsup.worker.execution.batch_arrays import Arrays
from mmsup.worker.execution.call_error import CallError

X = (TensorSpec("x", "FP32", (-1,)),)
Y = (TensorSpec("y", "FP32", (-1,)),)
HEAD = """
import asyncio
import numpy as np
import triton_python_backend_utils as pb_utils


def asked(request, model, **options):
    return pb_utils.InferenceRequest(
        model_name=model, requested_output_names=["y"], inputs=request.inputs(), **options
    )


class TritonPythonModel:
"""
SYNC = """
    def execute(self, requests):
        return [asked(each, b"double").exec() for each in requests]
"""


class ScriptedCalls(ModelCalls):
    """`double` doubles; another model fails with the code of that name."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[dict[str, Any]] = []
        self.threads: list[str] = []

    def infer(self, model: str, inputs: Mapping[str, Any], **options: Any) -> dict[str, Array]:
        self.asked.append(options)
        self.threads.append(threading.current_thread().name)
        if model != "double":
            raise CallError(model, f"{model} happened", model=model)
        return {"y": inputs["x"] * 2}

    async def infer_async(self, model: str, inputs: Mapping[str, Any], **options: Any) -> dict[str, Array]:
        await asyncio.sleep(0)
        return self.infer(model, inputs, **options)


@pytest.fixture
def engine() -> Iterator[TritonPythonEngine]:
    made = TritonPythonEngine()
    made.calls = ScriptedCalls()
    yield made
    made.unload()


def load(engine: TritonPythonEngine, folder: Path, methods: str, *, decoupled: bool = False) -> ScriptedCalls:
    code = HEAD + textwrap.indent(textwrap.dedent(methods), "    ")
    engine.load(replace(write_python(folder, "m", code, X, Y), interface=TRITON_PYTHON, decoupled=decoupled))
    assert isinstance(engine.calls, ScriptedCalls)
    return engine.calls


def x(*values: float) -> Arrays:
    return {"x": np.array(values, np.float32)}


def test_a_model_gets_the_response_of_another(engine: TritonPythonEngine, tmp_path: Path) -> None:
    calls = load(engine, tmp_path, SYNC)
    assert engine.infer(x(1, 2), ("y",))["y"].tolist() == [2.0, 4.0]
    assert calls.asked == [{"version": "", "outputs": ["y"], "parameters": {}, "timeout_s": None}]


def test_what_a_request_says_goes_along(engine: TritonPythonEngine, tmp_path: Path) -> None:
    methods = """
        def execute(self, requests):
            options = dict(model_version=3, timeout=1500000, parameters={"a": True}, correlation_id="s")
            flags = pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START
            return [asked(each, "double", flags=flags, **options).exec() for each in requests]
        """
    calls = load(engine, tmp_path, methods)
    engine.infer(x(1), ("y",))
    sequence = {"sequence_id": "s", "sequence_start": True, "sequence_end": False}
    assert calls.asked == [{"version": "3", "outputs": ["y"], "parameters": {"a": True, **sequence}, "timeout_s": 1.5}]


@pytest.mark.parametrize(
    ("code", "word"),
    [
        ("unknown_model", "NOT_FOUND"),
        ("bad_request", "INVALID_ARG"),
        ("worker_crashed", "UNAVAILABLE"),
        ("deadline_exceeded", "UNAVAILABLE"),
        ("cancelled", "CANCELLED"),
        ("inference_failed", "INTERNAL"),
    ],
)
def test_a_call_that_fails_gives_a_response_with_an_error(
    code: str, word: str, engine: TritonPythonEngine, tmp_path: Path
) -> None:
    methods = f"""
        def execute(self, requests):
            response = asked(requests[0], "{code}").exec()
            assert response.has_error() and not response.output_tensors()
            assert response.error().code() == pb_utils.TritonError.{word}
            assert response.error().message() == "{code} happened"
            return [asked(requests[0], "double").exec()]
        """
    load(engine, tmp_path, methods)
    assert engine.infer(x(1), ("y",))["y"].tolist() == [2.0]


def test_a_call_as_of_a_decoupled_model_gives_its_response_by_an_iterator(
    engine: TritonPythonEngine, tmp_path: Path
) -> None:
    methods = """
        def execute(self, requests):
            (response,) = asked(requests[0], "double").exec(decoupled=True)
            left = asked(requests[0], "double").exec(decoupled=True)
            left.cancel()
            assert list(left) == []
            return [response]
        """
    load(engine, tmp_path, methods)
    assert engine.infer(x(1), ("y",))["y"].tolist() == [2.0]


def test_an_asynchronous_execute_awaits_several_calls(engine: TritonPythonEngine, tmp_path: Path) -> None:
    methods = """
        async def execute(self, requests):
            request = requests[0]
            one, other = await asyncio.gather(*[asked(request, "double").async_exec() for _ in range(2)])
            return [pb_utils.InferenceResponse([pb_utils.Tensor("y", sum(
                pb_utils.get_output_tensor_by_name(each, "y").as_numpy() for each in (one, other)
            ))])]
        """
    load(engine, tmp_path, methods)

    async def answer() -> Arrays:
        return await cast("Coroutine[Any, Any, Arrays]", engine.respond(x(1), ("y",)))

    assert asyncio.run(answer())["y"].tolist() == [4.0]


def test_calls_of_a_decoupled_execute_are_made_by_the_workers_own_thread(
    engine: TritonPythonEngine, tmp_path: Path
) -> None:
    methods = """
        def execute(self, requests):
            requests[0].get_response_sender().send(asked(requests[0], "double").exec(), flags=1)
        """
    calls = load(engine, tmp_path, methods, decoupled=True)

    async def answer() -> list[Arrays]:
        return [each async for each in cast("Any", engine.respond(x(1), ("y",)))]

    assert [each["y"].tolist() for each in asyncio.run(answer())] == [[2.0]]
    assert calls.threads == [threading.main_thread().name]


def test_a_call_outside_of_execute_is_refused(engine: TritonPythonEngine, tmp_path: Path) -> None:
    methods = """
        def initialize(self, args):
            request = pb_utils.InferenceRequest(model_name="double", requested_output_names=["y"], inputs=[])
            self.error = request.exec().error()

        def execute(self, requests):
            return [pb_utils.InferenceResponse(error=self.error)]
        """
    real = TritonPythonEngine()
    code = HEAD + textwrap.indent(textwrap.dedent(methods), "    ")
    real.load(replace(write_python(tmp_path, "m", code, X, Y), interface=TRITON_PYTHON))
    (failure,) = real.run_batch([x(1)], ("y",), [{}])
    real.unload()
    assert "model 'double' cannot be called here" in str(failure)
