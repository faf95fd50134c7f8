"""What an inference request asks for: model, inputs, outputs, parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from mmsup.worker.engines.triton_python.api.errors import TritonModelException
from mmsup.worker.engines.triton_python.api.response import Parameters, parameters_text
from mmsup.worker.engines.triton_python.api.tensor import BackendTensor

SEQUENCE_START: Final = 1
SEQUENCE_END: Final = 2
"""Flags of a request."""


class PreferredMemory:
    """Where the outputs of a call shall be. They are in host memory, whatever it says."""

    def __init__(self, preferred_memory_type: int, preferred_device_id: int = 0) -> None:
        self.preferred_memory_type = preferred_memory_type
        self.preferred_device_id = preferred_device_id


class InferenceTrace:
    def get_context(self) -> str | None:
        """Nothing is traced."""
        return None


class RequestContent:
    """What is asked for. The arguments are those of the public class."""

    __slots__ = (
        "_correlation_id",
        "_flags",
        "_inputs",
        "_model_name",
        "_model_version",
        "_parameters",
        "_preferred_memory",
        "_request_id",
        "_requested_output_names",
        "_timeout",
    )

    def __init__(
        self,
        request_id: str = "",
        correlation_id: int | str = 0,
        inputs: Sequence[BackendTensor] = (),
        requested_output_names: Sequence[str] = (),
        model_name: str | bytes = "",
        model_version: int = -1,
        flags: int = 0,
        timeout: int = 0,
        preferred_memory: PreferredMemory | None = None,
        trace: InferenceTrace | None = None,
        parameters: Parameters | None = None,
    ) -> None:
        del trace
        for each in inputs:
            if not isinstance(each, BackendTensor):
                raise TypeError(f"inputs of an InferenceRequest are Tensors, not {type(each).__name__}")
        if not isinstance(correlation_id, int | str):
            raise TritonModelException("Correlation ID must be integer or string")
        self._request_id = request_id
        self._correlation_id = correlation_id
        self._inputs = list(inputs)
        self._requested_output_names = [_text(each) for each in requested_output_names]
        self._model_name = _text(model_name)
        self._model_version = int(model_version)
        self._flags = int(flags)
        self._timeout = int(timeout)
        self._preferred_memory = preferred_memory or PreferredMemory(0)
        self._parameters = parameters_text(parameters)

    def inputs(self) -> list[BackendTensor]:
        return self._inputs

    def request_id(self) -> str:
        return self._request_id

    def correlation_id(self) -> int | str:
        return self._correlation_id

    def requested_output_names(self) -> list[str]:
        return self._requested_output_names

    def model_name(self) -> str:
        return self._model_name

    def model_version(self) -> int:
        return self._model_version

    def flags(self) -> int:
        return self._flags

    def set_flags(self, flags: int) -> None:
        self._flags = int(flags)

    def timeout(self) -> int:
        """Microseconds; 0: none."""
        return self._timeout

    def preferred_memory(self) -> PreferredMemory:
        return self._preferred_memory

    def parameters(self) -> str:
        """Text of a JSON object."""
        return self._parameters

    def trace(self) -> InferenceTrace:
        return InferenceTrace()


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)
