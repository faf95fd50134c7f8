"""Inference jobs: the inputs of one execution of a model, and its result. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mmsup.gateway.client_memory.region_rules import RegionSpan
from mmsup.gateway.protocol.output_sizes import declared_bytes
from mmsup.ipc.messages.data import DeviceRegion, InferReply, InferSignature
from mmsup.ipc.specs import Metadata, TensorSpec
from mmsup.ipc.transport.codec import pack_signature, unpack_infer_signature


@dataclass(slots=True)
class InputTensor:
    """One input: `size` bytes at `offset` of the memory of the request body, or `data` of its own."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    offset: int = -1
    size: int = 0
    data: bytes | memoryview | None = None
    region: RegionSpan | None = None
    """Where a client's memory has it, until it is copied to `offset`."""


@dataclass(slots=True)
class OutputTensor:
    """One output; `data` is valid until its dispatched request is closed."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: memoryview


@dataclass(slots=True)
class InferenceJob:
    """What a model shall execute; the same for all requests with the same signature."""

    inputs: Sequence[InputTensor]
    outputs: Sequence[str]
    """Names; empty: all."""
    parameters: dict[str, Any]  # scalars, checked by the caller
    priority: int = 0
    output_bytes: tuple[Metadata, int | None] | None = field(default=None, compare=False)
    """Buffer size for the outputs under this metadata, None if it is unknown before the execution; cached."""
    is_in_space: bool = field(default=False, compare=False)
    """All inputs are in the memory of the request body, none has `data` of its own."""
    signature: bytes = field(default=b"", compare=False)
    """The packed InferSignature; cached."""
    regions: tuple[DeviceRegion, ...] = field(default=(), compare=False)
    """Tensors in memory of a GPU, which the worker copies."""

    def packed_signature(self) -> bytes:
        if not self.signature:
            self.is_in_space = all(each.data is None for each in self.inputs)
            inputs = tuple([TensorSpec(each.name, each.datatype, each.shape) for each in self.inputs])
            self.signature = pack_signature(InferSignature(inputs, tuple(self.outputs), self.parameters, self.priority))
        return self.signature

    def packed_signature_alone(self) -> bytes:
        """For a request that must be executed alone."""
        return pack_signature(replace(unpack_infer_signature(self.packed_signature()), runs_alone=True))

    def declared_bytes(self, metadata: Metadata) -> int | None:
        """Buffer size for its large outputs, None if a shape is not known."""
        if self.output_bytes is None or self.output_bytes[0] is not metadata:
            batch = self.inputs[0].shape[0] if self.inputs and self.inputs[0].shape else 1
            self.output_bytes = metadata, declared_bytes(metadata, self.outputs, batch)
        return self.output_bytes[1]


@dataclass(slots=True)
class InferenceResult:
    """The result of one request, and the reply that it came in."""

    outputs: list[OutputTensor]
    reply: InferReply
