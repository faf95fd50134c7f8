"""What is kept of a request so that the next one like it need not be parsed, and need not be made into objects.

A request becomes *packed* when it was answered twice in the same form: then the record for its worker and the response
are joined from constant bytes and the tensors, for as long as its route is plain (dispatch/link_table.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mmsup.gateway.dispatch.link_table import PlainRoute
from mmsup.gateway.dispatch.router import Router
from mmsup.gateway.infer.handler import ParsedRequest
from mmsup.gateway.infer.head_cache import ParsedHead
from mmsup.gateway.infer.response_template import ResponseTemplate
from mmsup.gateway.observability.request_counters import VersionCounters
from mmsup.gateway.protocol import json_template, json_tensors
from mmsup.gateway.protocol.inference_job import InferenceJob, InputTensor
from mmsup.gateway.protocol.json_tensors import TensorDataError

_ENTRY_BYTES: Final = 6144
_TENSOR_BYTES: Final = 1024
"""Of an input or output in the parsed request, its signatures and the template. Longer ones are part of the key too."""


class KnownRequest:
    """A parsed request with binary tensors."""

    __slots__ = ("packed", "parsed", "prefix", "response", "size_bytes", "version")

    def __init__(self, parsed: ParsedRequest, version: str, prefix: bytes = b"") -> None:
        """`version` of the model that served it. `prefix`: the head and the JSON part."""
        self.parsed = parsed
        self.version = version
        self.prefix = prefix
        names = [each.name for each in parsed.metadata.outputs]
        tensors = len(parsed.job.inputs) + len(names)
        self.size_bytes = _ENTRY_BYTES + _TENSOR_BYTES * tensors + 4 * sum(map(len, names)) + 2 * len(prefix)
        """An estimate, with the response."""
        self.response: ResponseTemplate | None = None
        """Of the last response, if other outputs can be filled into it."""
        self.packed: PackedRequest | None = None

    def with_inputs(self, data: Sequence[bytes | memoryview]) -> ParsedRequest:
        """The same request with these inputs."""
        job = self.parsed.job
        inputs = [
            InputTensor(each.name, each.datatype, each.shape, data=new)
            for each, new in zip(job.inputs, data, strict=True)
        ]
        return self.parsed.with_job(_with_inputs(job, inputs))


class KnownJsonRequest(KnownRequest):
    """A parsed JSON request without its numbers."""

    __slots__ = ("_positions",)

    def __init__(self, parsed: ParsedRequest, version: str, names: Sequence[str]) -> None:
        """`names`: the inputs in the order of the text."""
        inputs = [InputTensor(each.name, each.datatype, each.shape) for each in parsed.job.inputs]
        super().__init__(parsed.without_data(_with_inputs(parsed.job, inputs)), version)
        self._positions = [names.index(each.name) for each in inputs]

    def with_data(self, lists: Sequence[bytes]) -> ParsedRequest | None:
        """The same request with other numbers; None if these do not fit: the full parser reports what is wrong."""
        values = json_template.parse_lists(lists)
        if values is None:
            return None
        try:
            return self.with_inputs(
                [
                    json_tensors.to_bytes(values[position], each.datatype, each.shape)
                    for each, position in zip(self.parsed.job.inputs, self._positions, strict=True)
                ]
            )
        except TensorDataError:
            return None


@dataclass(frozen=True, slots=True, eq=False)
class PackedRequest:
    """How a known request is sent, and the form of its reply."""

    known: KnownRequest
    head: ParsedHead
    router: Router
    route: PlainRoute
    counters: VersionCounters
    prefix: bytes
    """The head and the JSON part. The bytes of the tensors follow."""
    size: int
    """Of the whole request, head and body."""
    spans: list[tuple[int, int]]
    """Of each input, in the whole request."""
    record_parts: tuple[bytes, ...]
    """Of codec.infer_record_parts."""
    deadline_ns: int
    """After the arrival of the request."""
    inferences: int
    """How many it counts as."""
    response: ResponseTemplate
    reply_signature: bytes
    reply_types: list[type]
    output_sizes: list[int]


def _with_inputs(job: InferenceJob, inputs: Sequence[InputTensor]) -> InferenceJob:
    signature = job.packed_signature()
    return InferenceJob(inputs, job.outputs, job.parameters, job.priority, job.output_bytes, signature=signature)
