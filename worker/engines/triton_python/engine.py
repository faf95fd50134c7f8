"""Engine for models of Triton's Python backend: `model.py` with a class `TritonPythonModel`.

`execute` gets the requests of a batch as a list and gives as many responses, each with outputs or an error of its own.
An exception of `execute` is one of the batch: its requests are then run again one by one, as those of every engine.

Inputs belong to the model, as in python_model.py: one copy, unless the parameter `read_only_inputs` is true. An output
of another datatype than declared is converted where it is of the same kind (int64 for INT32, float64 for FP32), which
is logged once: Triton would send it as it is, and models are written accordingly.
"""

from __future__ import annotations

import inspect
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from mmsup.ipc.errors import ModelError
from mmsup.ipc.python_models import TRITON_CLASS
from mmsup.ipc.specs import Metadata, ModelSpec
from mmsup.ipc.tensors.numpy_arrays import NUMPY, Array
from mmsup.worker.engines import torch_memory
from mmsup.worker.engines.gpu_memory_limit import enforce_gpu_memory
from mmsup.worker.engines.python_model import forget_module, load_module
from mmsup.worker.engines.triton_python.api.errors import TritonModelException, failure_of_error
from mmsup.worker.engines.triton_python.api.model_config import (
    BackendModelConfig,
    using_decoupled_model_transaction_policy,
)
from mmsup.worker.engines.triton_python.api.module import install_backend_utils
from mmsup.worker.engines.triton_python.api.request import InferenceRequest, received
from mmsup.worker.engines.triton_python.api.response import InferenceResponse
from mmsup.worker.engines.triton_python.api.response_sender import InferenceResponseSender
from mmsup.worker.engines.triton_python.api.tensor import BackendTensor
from mmsup.worker.engines.triton_python.config_document import (
    arguments,
    completed_metadata,
    completed_spec,
    config_document,
)
from mmsup.worker.engines.triton_python.decoupled_execution import DecoupledExecution
from mmsup.worker.engines.triton_python.decoupled_sender import DecoupledSender
from mmsup.worker.engines.triton_python.event_loop import EventLoopThread
from mmsup.worker.engines.triton_python.execute_thread import ExecuteThread
from mmsup.worker.engines.triton_python.sent_responses import SentResponses
from mmsup.worker.execution.batch_arrays import Arrays
from mmsup.worker.execution.engine import NO_BUFFERS, OutputBuffers, Responses, bool_parameter
from mmsup.worker.execution.model_errors import ModelFailure, RequestRefused

NO_RESPONSES: Final = "execute returned None, and no response sender was asked for: it returns a list of responses"
log = logging.getLogger("mmsup.worker")


class TritonPythonEngine:
    assembles_batches = True

    def __init__(self) -> None:
        self._model: Any = None  # an instance of the user's class
        self._execute: Callable[[list[InferenceRequest]], Any] = _not_loaded
        self._loop = EventLoopThread()
        self._copies = True
        self._dtypes: dict[str, np.dtype[Any]] = {}
        self._folder = ""
        self._converted: set[str] = set()
        """Outputs of which a conversion was logged."""
        self._thread = ExecuteThread()
        self._is_async = False
        self.is_streaming = False
        self.completed_spec: ModelSpec | None = None
        """Valid after `load`, as `is_streaming`."""

    def load(self, spec: ModelSpec) -> Metadata:
        self._copies = not bool_parameter(spec.parameters, "read_only_inputs")
        self._folder = spec.directory
        install_backend_utils(spec.directory)
        kind = _model_class(spec)
        document = _completed_document(kind, spec)
        self.completed_spec = spec = completed_spec(spec, document)
        metadata = completed_metadata(spec)
        self._dtypes = {each.name: NUMPY[each.datatype] for each in metadata.outputs}
        enforce_gpu_memory(spec)
        self._model = kind()
        if hasattr(self._model, "initialize"):
            self._model.initialize(arguments(spec, json.dumps(document)))
            enforce_gpu_memory(spec)  # it may have imported torch only now
        self._execute = self._model.execute
        self._is_async = inspect.iscoroutinefunction(self._execute)
        self.is_streaming = using_decoupled_model_transaction_policy(document)
        return replace(metadata, decoupled=self.is_streaming, runs_side_by_side=self.is_streaming)

    def infer(
        self, inputs: Mapping[str, Array], wanted: Sequence[str], buffers: OutputBuffers = NO_BUFFERS
    ) -> Mapping[str, Array]:
        (result,) = self.run_batch([inputs], wanted, [buffers])
        if isinstance(result, ModelFailure):
            raise RequestRefused(result)
        return result

    def run_batch(
        self, jobs: Sequence[Mapping[str, Array]], wanted: Sequence[str], buffers: Sequence[OutputBuffers]
    ) -> list[Arrays | ModelFailure]:
        del buffers  # the user's class makes its own arrays
        senders = [InferenceResponseSender() for _ in jobs]
        requests = [self._request(job, wanted, sender) for job, sender in zip(jobs, senders, strict=True)]
        try:
            returned = self._execute(requests)
            if inspect.iscoroutine(returned):
                returned = self._loop.start(returned).result()
            responses = _responses(returned, senders)
        finally:
            for sender in senders:
                sender.close()
        return [self._result(each, wanted) for each in responses]

    def respond(self, inputs: Mapping[str, Array], wanted: Sequence[str]) -> Responses:
        """Of a decoupled model: `execute` is called with the one request, and what it sends comes one by one."""
        stream = SentResponses()
        sender = DecoupledSender(stream, lambda response: self._copied_result(response, wanted))
        request = self._request(inputs, wanted, sender)
        execution = DecoupledExecution(stream, lambda: self._execute([request]))
        return execution.in_loop() if self._is_async else execution.in_thread(self._thread)

    def _copied_result(self, response: InferenceResponse, wanted: Sequence[str]) -> Arrays | ModelFailure:
        made = self._result(response, wanted)
        return made if isinstance(made, ModelFailure) else {name: each.copy() for name, each in made.items()}

    def _request(
        self, job: Mapping[str, Array], wanted: Sequence[str], sender: InferenceResponseSender
    ) -> InferenceRequest:
        tensors = [BackendTensor(name, self._own(array)) for name, array in job.items()]
        return received(InferenceRequest(inputs=tensors, requested_output_names=wanted), sender)

    def _own(self, array: Array) -> Array:
        return array.copy() if self._copies and array.dtype.kind != "O" else array

    def _result(self, response: InferenceResponse, wanted: Sequence[str]) -> Arrays | ModelFailure:
        error = response.error()
        if error is not None:
            return failure_of_error(error)
        made = {each.name(): each for each in response.output_tensors()}
        return {name: self._output(made[name]) for name in wanted if name in made}

    def _output(self, tensor: BackendTensor) -> Array:
        name, array = tensor.name(), tensor.host_array()
        declared = self._dtypes.get(name)
        if declared is None or array.dtype == declared or array.dtype.kind in "OSU":
            return array
        if array.dtype.kind != declared.kind and not {array.dtype.kind, declared.kind} <= {"i", "u"}:
            return array  # which is refused where all outputs are checked
        converted = array.astype(declared)
        if declared.kind != "f" and not np.array_equal(converted, array):
            return array  # likewise: its numbers do not fit
        if name not in self._converted:
            self._converted.add(name)
            log.warning("output '%s' is made as %s and converted to the declared %s", name, array.dtype, declared)
        return converted

    def shrink(self) -> None:
        torch_memory.free_cache()

    def device_bytes(self) -> int:
        return torch_memory.reserved_bytes()

    def unload(self) -> None:
        model, self._model, self._execute = self._model, None, _not_loaded
        try:
            if model is not None and hasattr(model, "finalize"):
                model.finalize()
        finally:
            self._loop.stop()
            self._thread.stop()
            forget_module(self._folder)


def _model_class(spec: ModelSpec) -> Any:  # a class of the user
    module = load_module(os.path.join(spec.directory, spec.artefact), is_in_package=True)
    kind = getattr(module, TRITON_CLASS, None)
    if kind is None or not callable(getattr(kind, "execute", None)):
        text = f"model '{spec.name}': {spec.artefact} has no class {TRITON_CLASS} with a method execute(self, requests)"
        raise ModelError("load_failed", text)
    return kind


def _completed_document(kind: Any, spec: ModelSpec) -> dict[str, Any]:  # a class of the user; ModelConfig as JSON
    document = config_document(spec)
    if not hasattr(kind, "auto_complete_config"):
        return document
    made = kind.auto_complete_config(BackendModelConfig(json.dumps(document)))
    if not isinstance(made, BackendModelConfig):
        text = "auto_complete_config returns the pb_utils.ModelConfig that it was given"
        raise ModelError("config_mismatch", f"model '{spec.name}': {text}, not a {type(made).__name__}")
    return made.as_dict()


def _responses(returned: Any, senders: Sequence[InferenceResponseSender]) -> list[InferenceResponse]:
    """A response for each request, of what `execute` returned or sent; TritonModelException if there is not."""
    if returned is None:
        if not all(each.is_taken for each in senders):
            raise TritonModelException(NO_RESPONSES)
        return [_sent(each) for each in senders]
    if not isinstance(returned, list):
        raise TritonModelException(f"execute returned a {type(returned).__name__} instead of a list of responses")
    if len(returned) != len(senders):
        raise TritonModelException(f"execute returned {len(returned)} responses for {len(senders)} requests")
    for each in returned:
        if not isinstance(each, InferenceResponse):
            raise TritonModelException(f"execute returned a {type(each).__name__} in the place of an InferenceResponse")
    return returned


def _sent(sender: InferenceResponseSender) -> InferenceResponse:
    response = sender.wait()
    if response is None:
        raise TritonModelException("the response sender was closed before a response was sent")
    return response


def _not_loaded(_: list[InferenceRequest]) -> Any:  # in the place of the user's method
    raise AssertionError("execute before load")
