"""Caches parsed requests and the template of the last response to each. Pure.

The key of a request with binary tensors is its JSON part; that of a JSON request is the text around its numbers
(protocol/json_template.py). An entry is valid as long as the model's version and metadata are the same.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Final

from mmsup.gateway.infer.handler import ParsedRequest
from mmsup.gateway.infer.response_template import ResponseTemplate
from mmsup.gateway.protocol import json_template, json_tensors
from mmsup.gateway.protocol.inference_job import InferenceJob, InputTensor
from mmsup.gateway.protocol.json_tensors import TensorDataError
from mmsup.ipc.bounded_cache import KEYS_LIMIT, BoundedCache
from mmsup.ipc.specs import Metadata

REQUESTS_LIMIT_BYTES: Final = 32 << 20
"""Of a gateway, with their response templates."""
_ENTRY_BYTES: Final = 4096
_TENSOR_BYTES: Final = 1024
"""Of an input or output in the parsed request, its signatures and the template. Longer ones are part of the key too."""


class CachedRequest:
    """A parsed request with binary tensors."""

    __slots__ = ("parsed", "response", "size_bytes", "version")

    def __init__(self, parsed: ParsedRequest, version: str) -> None:
        self.parsed = parsed
        self.version = version
        names = [each.name for each in parsed.metadata.outputs]
        tensors = len(parsed.job.inputs) + len(names)
        self.size_bytes = _ENTRY_BYTES + _TENSOR_BYTES * tensors + 4 * sum(map(len, names))
        """An estimate, with the response."""
        self.response: ResponseTemplate | None = None
        """Of the last response, if other outputs can be filled into it."""


class CachedJsonRequest(CachedRequest):
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
        job = self.parsed.job
        inputs: list[InputTensor] = []
        try:
            for each, position in zip(job.inputs, self._positions, strict=True):
                data = json_tensors.to_bytes(values[position], each.datatype, each.shape)
                inputs.append(InputTensor(each.name, each.datatype, each.shape, data=data))
        except TensorDataError:
            return None
        return self.parsed.with_job(_with_inputs(job, inputs))


class RequestCache:
    def __init__(self) -> None:
        self._requests: BoundedCache[Hashable, CachedRequest] = BoundedCache(
            KEYS_LIMIT, REQUESTS_LIMIT_BYTES, lambda _, cached: cached.size_bytes
        )

    def get(self, key: Hashable, version: str, metadata: Metadata) -> CachedRequest | None:
        """The cached request, if it was parsed for this version and metadata."""
        cached = self._requests.recent.get(key) or self._requests.get(key)
        if cached is None or cached.parsed.metadata is not metadata or cached.version != version:
            return None
        return cached

    def put(self, key: Hashable, cached: CachedRequest) -> None:
        self._requests.add(key, cached)


def _with_inputs(job: InferenceJob, inputs: Sequence[InputTensor]) -> InferenceJob:
    signature = job.packed_signature()
    return InferenceJob(inputs, job.outputs, job.parameters, job.priority, job.output_bytes, signature=signature)
