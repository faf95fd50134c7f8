"""Engine for a custom runtime of MLServer: a class of the model's folder with `load` and `predict`, both `async`.

MLServer is imported from the model's interpreter, and serves nothing here. Its classes make the request of the arrays,
by the datatypes of the protocol, and the arrays of the response. Requests await side by side, as they do there.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np

from mmsup.ipc.errors import ModelError
from mmsup.ipc.specs import Metadata, ModelSpec
from mmsup.ipc.tensors.numpy_arrays import NUMPY, Array, datatype_of
from mmsup.worker.engines import torch_memory
from mmsup.worker.engines.gpu_memory_limit import enforce_gpu_memory
from mmsup.worker.engines.python_model import forget_module, load_module
from mmsup.worker.engines.tensor_metadata import configured_metadata
from mmsup.worker.execution.batch_arrays import Arrays
from mmsup.worker.execution.engine import NO_BUFFERS, OutputBuffers, Responses
from mmsup.worker.execution.request_parameters import PARAMETERS


class MlserverEngine:
    def __init__(self) -> None:
        self._model: Any = None  # an instance of the user's class
        self._types: Any = None  # the module mlserver.types
        self._name = ""
        self._folder = ""
        self._dtypes: dict[str, np.dtype[Any]] = {}
        self.is_streaming = True

    def load(self, spec: ModelSpec) -> Metadata:
        metadata = configured_metadata(spec, spec.artefact)
        self._dtypes = {each.name: NUMPY[each.datatype] for each in metadata.outputs}
        self._name, self._folder = spec.name, spec.directory
        mlserver = _mlserver(spec)
        self._types = importlib.import_module("mlserver.types")
        settings = mlserver.ModelSettings.parse_file(os.path.join(spec.directory, spec.artefact))
        enforce_gpu_memory(spec)
        self._model = _model_class(spec)(settings)
        if not asyncio.run(self._model.load()):
            raise ModelError("load_failed", f"model '{spec.name}': its method load did not return True")
        enforce_gpu_memory(spec)  # it may have imported torch only now
        return replace(metadata, runs_side_by_side=True)

    def infer(
        self, inputs: Mapping[str, Array], wanted: Sequence[str], buffers: OutputBuffers = NO_BUFFERS
    ) -> Mapping[str, Array]:
        del buffers  # it makes its own arrays
        return asyncio.run(self._predict(inputs, wanted))

    def respond(self, inputs: Mapping[str, Array], wanted: Sequence[str]) -> Responses:
        return self._predict(inputs, wanted)

    async def _predict(self, inputs: Mapping[str, Array], wanted: Sequence[str]) -> Arrays:
        types, given = self._types, dict(PARAMETERS.get())
        request = types.InferenceRequest(
            model_name=self._name,
            parameters=types.Parameters(**given) if given else None,
            inputs=[self._input(name, array) for name, array in inputs.items()],
            outputs=[types.RequestOutput(name=each) for each in wanted],
        )
        response = await self._model.predict(request)
        made = {each.name: each for each in response.outputs}
        return {name: self._output(made[name]) for name in wanted if name in made}

    def _input(self, name: str, array: Array) -> Any:  # of mlserver
        declared = getattr(self._model, "_inputs_index", {}).get(name)
        return self._types.RequestInput(
            name=name,
            datatype=datatype_of(array),
            shape=list(array.shape),
            data=array.reshape(-1).tolist(),
            parameters=getattr(declared, "parameters", None),
        )

    def _output(self, output: Any) -> Array:  # of mlserver
        data = getattr(output.data, "root", output.data)
        dtype = NUMPY.get(output.datatype, self._dtypes.get(output.name))
        if dtype is not None and dtype.kind == "O":
            strings = np.empty(len(data), dtype=np.object_)
            strings[:] = list(data)
            return strings.reshape(output.shape)
        return np.asarray(data, dtype).reshape(output.shape)

    def shrink(self) -> None:
        torch_memory.free_cache()

    def device_bytes(self) -> int:
        return torch_memory.reserved_bytes()

    def unload(self) -> None:
        model, self._model = self._model, None
        try:
            if model is not None and hasattr(model, "unload"):
                asyncio.run(model.unload())
        finally:
            forget_module(self._folder)


def _mlserver(spec: ModelSpec) -> ModuleType:
    try:
        return importlib.import_module("mlserver")
    except ModuleNotFoundError as error:
        if error.name != "mlserver":
            raise
        text = (
            f"model '{spec.name}': mlserver, which its class extends, is not installed in this worker's interpreter: "
            "install it there by pip install mlserver, or name another interpreter by `python` in mmsup.yaml"
        )
        raise ModelError("load_failed", text) from error


def _model_class(spec: ModelSpec) -> Any:  # a class of the user
    with open(os.path.join(spec.directory, spec.artefact), encoding="utf-8") as file:
        path: str = json.load(file)["implementation"]
    module_name, _, class_name = path.rpartition(".")
    file_name = os.path.join(spec.directory, *module_name.split(".")) + ".py"
    module = (
        load_module(file_name) if "." not in module_name and os.path.isfile(file_name) else _package(spec, module_name)
    )
    kind = getattr(module, class_name, None)
    if not callable(getattr(kind, "predict", None)):
        raise ModelError("load_failed", f"model '{spec.name}': {path} is no class with a method predict")
    return kind


def _package(spec: ModelSpec, name: str) -> ModuleType:
    """A module inside a package of the model's folder."""
    sys.path.append(spec.directory)
    return importlib.import_module(name)
