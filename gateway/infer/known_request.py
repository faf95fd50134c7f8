"""What is kept of a request so that the next one like it need not be parsed, and need not be made into objects.

A request becomes *packed* when it was answered twice in the same form: then the record for its worker and the response
are joined from constant bytes and the tensors, for as long as its route is plain (dispatch/link_table.py).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import orjson

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

    __slots__ = ("has_id", "packed", "parsed", "response", "size_bytes", "text", "version")

    def __init__(self, parsed: ParsedRequest, version: str, text: bytes = b"") -> None:
        """`version` of the model that served it. `text`: what others like it have in common."""
        self.parsed = parsed
        self.version = version
        self.text = text
        self.has_id = b"\0" in text
        """Whether others have another id in the JSON."""
        names = [each.name for each in parsed.metadata.outputs]
        tensors = len(parsed.job.inputs) + len(names)
        self.size_bytes = _ENTRY_BYTES + _TENSOR_BYTES * tensors + 4 * sum(map(len, names)) + 2 * len(text)
        """An estimate, with the response."""
        self.response: ResponseTemplate | None = None
        """Of the last response, if other outputs can be filled into it."""
        self.packed: PackedRequest | None = None

    def with_inputs(self, data: Sequence[bytes | memoryview], json_id: str) -> ParsedRequest:
        """The same request with these inputs and this id, if it has one that may change."""
        job = self.parsed.job
        inputs = [
            InputTensor(each.name, each.datatype, each.shape, data=new)
            for each, new in zip(job.inputs, data, strict=True)
        ]
        return self.parsed.with_job(_with_inputs(job, inputs), json_id)

    def input_reader(self, head: ParsedHead, body: memoryview) -> BinaryInputs | JsonInputs | None:  # noqa: ARG002 - as JSON
        """Reads the inputs of requests like this one, which has this head and body; None if only the parser can."""
        job = self.parsed.job
        if not job.is_in_space or not self.text:
            return None
        start = head.layout.start
        spans = [(each.offset - start, each.offset - start + each.size) for each in job.inputs]
        return BinaryInputs(spans, [each.size for each in job.inputs])


class KnownJsonRequest(KnownRequest):
    """A parsed JSON request without its numbers."""

    __slots__ = ("_positions",)

    def __init__(self, parsed: ParsedRequest, version: str, names: Sequence[str], text: bytes = b"") -> None:
        """`names`: the inputs in the order of the text."""
        inputs = [InputTensor(each.name, each.datatype, each.shape) for each in parsed.job.inputs]
        super().__init__(parsed.without_data(_with_inputs(parsed.job, inputs)), version, text)
        self._positions = [names.index(each.name) for each in inputs]

    def with_data(self, lists: Sequence[bytes], json_id: str = "") -> ParsedRequest | None:
        """The same request with other numbers; None if these do not fit: the full parser reports what is wrong."""
        values = json_template.parse_lists(lists)
        if values is None:
            return None
        try:
            return self.with_inputs(
                [
                    json_tensors.to_bytes(values[position], each.datatype, each.shape)
                    for each, position in zip(self.parsed.job.inputs, self._positions, strict=True)
                ],
                json_id,
            )
        except TensorDataError:
            return None

    def input_reader(self, head: ParsedHead, body: memoryview) -> BinaryInputs | JsonInputs | None:  # noqa: ARG002 - as binary
        inputs = self.parsed.job.inputs
        packers = [json_tensors.number_packer(each.datatype, each.shape) for each in inputs]
        found = [each for each in packers if each is not None]
        if len(found) < len(packers):
            return None
        return JsonInputs(json_template.text_around_list(bytes(body)), list(zip(self._positions, found, strict=True)))


class BinaryInputs:
    """Where the inputs are in a body."""

    __slots__ = ("only", "sizes", "spans")

    def __init__(self, spans: list[tuple[int, int]], sizes: list[int]) -> None:
        self.spans = spans
        self.sizes = sizes
        self.only = spans[0] if len(spans) == 1 else None
        """Of the only one."""


class JsonInputs:
    """Makes the bytes of inputs of the lists of numbers in a text."""

    __slots__ = ("_packers", "after", "before", "only", "sizes")

    def __init__(self, around: tuple[bytes, bytes] | None, packers: list[tuple[int, struct.Struct]]) -> None:
        """`around`: the text before and after the only list. `packers`: for each input the number of its list, and its
        packer."""
        self.before, self.after = around or (b"", b"")
        self._packers = [(position, each.pack) for position, each in packers]
        self.sizes = [each.size for _, each in packers]
        self.only = None
        """None of them is in the body as it is."""

    def pack(self, lists: Sequence[bytes | bytearray]) -> list[bytes] | None:
        """The inputs in these lists, which are in brackets; None if the parser must say what is wrong with them."""
        packed: list[bytes] = []
        try:
            for position, pack in self._packers:
                text = lists[position]
                values = orjson.loads(text)
                if type(values) is not list:
                    return None
                if b"e" in text and bool in map(type, values):  # as in `true`, which would count as a number
                    return None
                packed.append(pack(*values))
        except (orjson.JSONDecodeError, struct.error, OverflowError):
            return None
        return packed


@dataclass(frozen=True, slots=True, eq=False)
class PackedRequest:
    """How a known request is sent, and the form of its reply."""

    known: KnownRequest
    head: ParsedHead
    model: str
    served_by: tuple[str, str]
    """Model and version."""
    router: Router
    route: PlainRoute
    counters: VersionCounters
    inputs: BinaryInputs | JsonInputs
    record_parts: tuple[bytes, ...]
    """Of codec.infer_record_parts."""
    deadline_ns: int
    """After the arrival of the request."""
    inferences: int
    """How many it counts as."""
    response: ResponseTemplate
    reply_signature: bytes
    output_sizes: list[int]
    only_size: int | None


def _with_inputs(job: InferenceJob, inputs: Sequence[InputTensor]) -> InferenceJob:
    signature = job.packed_signature()
    return InferenceJob(inputs, job.outputs, job.parameters, job.priority, job.output_bytes, signature=signature)
