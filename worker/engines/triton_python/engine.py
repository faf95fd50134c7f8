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
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsup.ipc.errors import ModelError
from mmsup.ipc.python_models import TRITON_CLASS
from mmsup.ipc.specs import Metadata, ModelSpec
from mmsup.ipc.tensors.numpy_arrays import NUMPY, Array
from mmsup.worker.calls.model_calls import ModelCalls
from mmsup.worker.engines import torch_memory
from mmsup.worker.engines.gpu_memory_limit import enforce_gpu_memory
from mmsup.worker.engines.python_model import forget_module, load_module
from mmsup.worker.engines.triton_python.api.errors import failure_of_error
from mmsup.worker.engines.triton_python.api.model_calls import PATH
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
from mmsup.worker.engines.triton_python.returned_responses import Execute, checked_responses
from mmsup.worker.execution.batch_arrays import Arrays, split, stack
from mmsup.worker.execution.engine import NO_BUFFERS, OutputBuffers, Responses, bool_parameter
from mmsup.worker.execution.model_errors import ModelFailure, RequestRefused
from mmsup.worker.execution.request_parameters import PARAMETERS, Parameters
from mmsup.worker.execution.sequence_view import SequenceView

if TYPE_CHECKING:
    from mmsup.worker.engines.triton_python.responder import Responder  # imports asyncio, which takes 30 ms of a start

log = logging.getLogger("mmsup.worker")


class TritonPythonEngine:
    assembles_batches = True
    takes_sequences = True

    def __init__(self) -> None:
        self._model: Any = None  # an instance of the user's class
        self._execute: Execute = _not_loaded
        self._copies = True
        self._dtypes: dict[str, np.dtype[Any]] = {}
        self._folder = ""
        self._converted: set[str] = set()
        """Outputs of which a conversion was logged."""
        self.calls = ModelCalls()
        self.sequences: Sequence[SequenceView | None] = ()
        """Of the rows of the next run, in a model with sequences; set before each."""
        self._responder: Responder | None = None
        self.is_streaming = False
        self.completed_spec: ModelSpec | None = None
        """Valid after `load`, as `is_streaming`."""

    def load(self, spec: ModelSpec) -> Metadata:
        self._copies = not bool_parameter(spec.parameters, "read_only_inputs")
        self._folder = spec.directory
        install_backend_utils(spec.directory)
        PATH.use(self.calls)
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
        is_decoupled = using_decoupled_model_transaction_policy(document)
        self.is_streaming = is_decoupled or inspect.iscoroutinefunction(self._execute)
        if self.is_streaming:
            from mmsup.worker.engines.triton_python.responder import Responder  # noqa: PLC0415 - imports asyncio

            self._responder = Responder(
                self._execute, self._request, self._result, self.calls, is_decoupled=is_decoupled
            )
        return replace(
            metadata,
            decoupled=is_decoupled,
            runs_side_by_side=self.is_streaming,
            dynamic_batching="dynamic_batching" in document,
        )

    def infer(
        self, inputs: Mapping[str, Array], wanted: Sequence[str], buffers: OutputBuffers = NO_BUFFERS
    ) -> Mapping[str, Array]:
        del buffers  # the user's class makes its own arrays
        sequences, self.sequences = self.sequences, ()
        jobs = split(inputs, [1] * len(sequences)) if len(sequences) > 1 else [inputs]
        made: list[Arrays] = []
        for result in self._run(jobs, wanted, [_parameters(each) for each in sequences] or [PARAMETERS.get()]):
            if isinstance(result, ModelFailure):
                raise RequestRefused(result)
            made.append(result)
        return stack(made) if len(made) > 1 else made[0]

    def run_batch(
        self, jobs: Sequence[Mapping[str, Array]], wanted: Sequence[str], buffers: Sequence[OutputBuffers]
    ) -> list[Arrays | ModelFailure]:
        del buffers  # the user's class makes its own arrays
        return self._run(jobs, wanted, [PARAMETERS.get()] * len(jobs))

    def _run(
        self, jobs: Sequence[Mapping[str, Array]], wanted: Sequence[str], parameters: Sequence[Parameters]
    ) -> list[Arrays | ModelFailure]:
        senders = [InferenceResponseSender() for _ in jobs]
        each = zip(jobs, senders, parameters, strict=True)
        requests = [self._request(job, wanted, sender, words) for job, sender, words in each]
        PATH.use(self.calls)
        try:
            responses = checked_responses(self._execute(requests), senders)
        finally:
            for sender in senders:
                sender.close()
        return [self._result(each, wanted) for each in responses]

    def respond(self, inputs: Mapping[str, Array], wanted: Sequence[str]) -> Responses:
        assert self._responder is not None, "its execute answers once, and does not await"
        return self._responder.respond(inputs, wanted)

    def _request(
        self,
        job: Mapping[str, Array],
        wanted: Sequence[str],
        sender: InferenceResponseSender,
        parameters: Parameters | None = None,
    ) -> InferenceRequest:
        tensors = [BackendTensor(name, self._own(array)) for name, array in job.items()]
        return received(tensors, wanted, PARAMETERS.get() if parameters is None else parameters, sender)

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
            if self._responder is not None:
                self._responder.stop()
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


def _parameters(sequence: SequenceView | None) -> Parameters:
    """Of a request of a sequence; none of a row that only fills a slot."""
    own = {**PARAMETERS.get()}
    if sequence is None:
        return {}
    return own | {"sequence_id": sequence.id, "sequence_start": sequence.start, "sequence_end": sequence.end}


def _not_loaded(_: list[InferenceRequest]) -> Any:  # in the place of the user's method
    raise AssertionError("execute before load")
