"""`pb_utils.InferenceResponse`: the outputs of one request, or its error."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mmsup.worker.engines.triton_python.api.errors import TritonError, TritonModelException
from mmsup.worker.engines.triton_python.api.tensor import BackendTensor

Parameters = Mapping[str, Any]  # of bool, int or str


class InferenceResponse:
    __slots__ = ("_error", "_output_tensors", "_parameters")

    def __init__(
        self,
        output_tensors: Sequence[BackendTensor] = (),
        error: TritonError | None = None,
        parameters: Parameters | None = None,
    ) -> None:
        self._output_tensors = list(output_tensors)
        for each in self._output_tensors:
            if not isinstance(each, BackendTensor):
                raise TypeError(f"output_tensors of an InferenceResponse are Tensors, not {type(each).__name__}")
        if error is not None and not isinstance(error, TritonError):
            raise TypeError(f"error of an InferenceResponse is a TritonError, not {type(error).__name__}")
        self._error = error
        self._parameters = parameters_text(parameters)

    def output_tensors(self) -> list[BackendTensor]:
        return self._output_tensors

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error

    def parameters(self) -> str:
        """Text of a JSON object."""
        return self._parameters


def parameters_text(parameters: Parameters | None) -> str:
    """JSON of parameters; TritonModelException for a value of another type than bool, int, str."""
    if not parameters:
        return "{}"
    for name, value in parameters.items():
        if not isinstance(name, str) or not isinstance(value, bool | int | str):
            raise TritonModelException(f"parameters are str by str, int or bool: {name!r} is a {type(value).__name__}")
    return json.dumps(dict(parameters))
