"""Custom runtimes of MLServer, with a double of its library: what a class gets and what becomes of its answers."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np
import pytest

from mmsup.ipc.errors import ModelError
from mmsup.ipc.specs import MLSERVER, ModelSpec, TensorSpec
from mmsup.worker.engines.mlserver_runtime import MlserverEngine
from mmsup.worker.execution.batch_arrays import Arrays
from mmsup.worker.execution.request_parameters import PARAMETERS

CODE = """
import mlserver
from mlserver.types import InferenceResponse, ResponseOutput


class Total(mlserver.MLModel):
    async def load(self):
        self.factor = self.settings["parameters"]["extra"]["factor"]
        return self.factor > 0

    async def predict(self, payload):
        (one,) = payload.inputs
        total = sum(one.data) * self.factor
        word = f"{one.datatype} {one.shape} {payload.model_name} {payload.parameters}"
        return InferenceResponse(outputs=[
            ResponseOutput(name="total", datatype="FP32", shape=[1], data=[total]),
            ResponseOutput(name="word", datatype="BYTES", shape=[1], data=[word]),
        ])
"""


def record(*names: str) -> type[Any]:
    """A class with these fields, all of which may be left out."""

    def fill(self: Any, **given: Any) -> None:
        for name in names:
            setattr(self, name, given.get(name))

    return type("Record", (), {"__init__": fill})


@dataclass
class Settings:
    parsed: dict[str, Any]

    @classmethod
    def parse_file(cls, path: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(Path(path).read_text())
        return found


class MLModel:
    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings


@pytest.fixture
def mlserver(monkeypatch: pytest.MonkeyPatch) -> None:
    library, types = ModuleType("mlserver"), ModuleType("mlserver.types")
    vars(library).update(ModelSettings=Settings, MLModel=MLModel, types=types)
    vars(types).update(
        InferenceRequest=record("model_name", "parameters", "inputs", "outputs"),
        InferenceResponse=record("outputs"),
        RequestInput=record("name", "datatype", "shape", "data", "parameters"),
        RequestOutput=record("name"),
        ResponseOutput=record("name", "datatype", "shape", "data"),
        Parameters=dict,
    )
    monkeypatch.setitem(sys.modules, "mlserver", library)
    monkeypatch.setitem(sys.modules, "mlserver.types", types)


@pytest.fixture
def engine() -> Iterator[MlserverEngine]:
    made = MlserverEngine()
    yield made
    made.unload()


def spec_of(folder: Path, implementation: str = "totals.Total", factor: float = 2) -> ModelSpec:
    settings = {"implementation": implementation, "parameters": {"extra": {"factor": factor}}}
    (folder / "model-settings.json").write_text(json.dumps(settings))
    (folder / "totals.py").write_text(CODE)
    tensors = (TensorSpec("x", "FP32", (-1,)),), (TensorSpec("total", "FP32", (1,)), TensorSpec("word", "BYTES", (1,)))
    named = "m", "1", str(folder), "model-settings.json"
    return ModelSpec(*named, "custom", "python", interface=MLSERVER, inputs=tensors[0], outputs=tensors[1])


@pytest.mark.usefixtures("mlserver")
def test_a_class_gets_a_request_of_the_protocol_and_its_outputs_are_arrays(
    tmp_path: Path, engine: MlserverEngine
) -> None:
    assert engine.load(spec_of(tmp_path)).runs_side_by_side

    async def answer() -> Arrays:
        PARAMETERS.set({"a": 1})
        given = {"x": np.array([1, 2], np.float32)}
        return await cast("Coroutine[Any, Any, Arrays]", engine.respond(given, ("total", "word")))

    made = asyncio.run(answer())
    assert made["total"].tolist() == [6.0]
    assert made["total"].dtype == np.float32
    assert made["word"].tolist() == ["FP32 [2] m {'a': 1}"]


@pytest.mark.usefixtures("mlserver")
def test_a_load_that_is_not_true_fails(tmp_path: Path, engine: MlserverEngine) -> None:
    with pytest.raises(ModelError, match="its method load did not return True"):
        engine.load(spec_of(tmp_path, factor=0))


@pytest.mark.usefixtures("mlserver")
def test_what_is_no_class_says_so(tmp_path: Path, engine: MlserverEngine) -> None:
    with pytest.raises(ModelError, match=r"totals\.Nothing is no class with a method predict"):
        engine.load(spec_of(tmp_path, "totals.Nothing"))


def test_an_interpreter_without_mlserver_says_what_to_install(
    tmp_path: Path, engine: MlserverEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlserver", None)
    with pytest.raises(ModelError, match="pip install mlserver"):
        engine.load(spec_of(tmp_path))
