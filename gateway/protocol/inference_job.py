"""What a model shall do for one request, and what it made of it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mmsup.gateway.protocol.output_sizes import declared_bytes
from mmsup.ipc.messages.data import InferSignature
from mmsup.ipc.specs import Metadata, TensorSpec
from mmsup.ipc.transport.codec import pack_signature, unpack_infer_signature


@dataclass(slots=True)
class InputTensor:
    """One input: `size` bytes at `offset` of `Exchange.space`, or `data` of its own."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    offset: int = -1
    size: int = 0
    data: bytes | memoryview | None = None


@dataclass(slots=True)
class OutputTensor:
    """One output; `data` is valid until the exchange is left."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: memoryview


@dataclass(slots=True)
class InferenceJob:
    """What a model shall do: read from a request, the same for every request of the same words."""

    inputs: Sequence[InputTensor]
    outputs: Sequence[str]
    """Names; none: all that the model has."""
    parameters: dict[str, Any]  # scalars, checked by the caller
    priority: int = 0
    output_bytes: tuple[Metadata, int | None] | None = field(default=None, compare=False)
    """Room that the outputs need by these metadata, None if only the run can tell; computed once."""
    is_in_space: bool = field(default=False, compare=False)
    """All inputs lie in the request's own space, and none has bytes of its own."""
    signature: bytes = field(default=b"", compare=False)
    """Its Form as a worker reads it; packed once."""

    def packed_signature(self) -> bytes:
        """The words of the request."""
        if not self.signature:
            self.is_in_space = all(each.data is None for each in self.inputs)
            inputs = tuple([TensorSpec(each.name, each.datatype, each.shape) for each in self.inputs])
            self.signature = pack_signature(InferSignature(inputs, tuple(self.outputs), self.parameters, self.priority))
        return self.signature

    def packed_signature_alone(self) -> bytes:
        """The same for a request that shall share its run with nobody."""
        return pack_signature(replace(unpack_infer_signature(self.packed_signature()), runs_alone=True))

    def declared_bytes(self, metadata: Metadata) -> int | None:
        """Room for its large outputs, or None if a shape is not known before."""
        if self.output_bytes is None or self.output_bytes[0] is not metadata:
            batch = self.inputs[0].shape[0] if self.inputs and self.inputs[0].shape else 1
            self.output_bytes = metadata, declared_bytes(metadata, self.outputs, batch)
        return self.output_bytes[1]


@dataclass(slots=True)
class InferenceResult:
    """The result of one request; times in nanoseconds, `batch` is how many requests ran together."""

    outputs: list[OutputTensor]
    queue_ns: int
    input_ns: int
    infer_ns: int
    output_ns: int
    batch: int
