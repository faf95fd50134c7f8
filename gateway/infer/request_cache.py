"""Orders that were read before, by the words of their requests, and the last reply to each. Pure.

The same words mean the same order as long as the model is what it was: same version, same metadata. Of a request with
blobs the words are its JSON part; of one in JSON, the text around its numbers (skeleton.py).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from mmsup.gateway.infer.handler import ParsedRequest
from mmsup.gateway.infer.response_template import ResponseTemplate
from mmsup.gateway.protocol import json_template, json_tensors
from mmsup.gateway.protocol.inference_job import InferenceJob, InputTensor
from mmsup.gateway.protocol.json_tensors import TensorDataError
from mmsup.ipc.specs import Metadata
from mmsup.ipc.two_generation_cache import BoundedCache


class CachedRequest:
    """One order."""

    __slots__ = ("parsed", "response", "version")

    def __init__(self, order: ParsedRequest, version: str) -> None:
        self.parsed = order
        self.version = version
        self.response: ResponseTemplate | None = None
        """The words of the last reply, if other outputs can be put into them."""


class CachedJsonRequest(CachedRequest):
    """One order in JSON, but for the numbers."""

    __slots__ = ("_positions",)

    def __init__(self, order: ParsedRequest, version: str, names: Sequence[str]) -> None:
        run = order.job
        words = run.packed_signature()
        inputs = [InputTensor(each.name, each.datatype, each.shape) for each in run.inputs]
        bare = InferenceJob(inputs, run.outputs, run.parameters, run.priority, run.output_bytes, signature=words)
        super().__init__(order.without_data(bare), version)
        self._positions = [names.index(each.name) for each in inputs]

    def with_data(self, lists: Sequence[bytes]) -> ParsedRequest | None:
        """The same order of other numbers; None if these do not fit, which the long way words."""
        values = json_template.parse_lists(lists)
        if values is None:
            return None
        run = self.parsed.job
        inputs: list[InputTensor] = []
        try:
            for each, place in zip(run.inputs, self._positions, strict=True):
                data = json_tensors.to_bytes(values[place], each.datatype, each.shape)
                inputs.append(InputTensor(each.name, each.datatype, each.shape, data=data))
        except TensorDataError:
            return None
        return self.parsed.with_job(
            InferenceJob(
                inputs, run.outputs, run.parameters, run.priority, run.output_bytes, signature=run.packed_signature()
            )
        )


class RequestCache:
    """All that a gateway knows."""

    def __init__(self) -> None:
        self._requests: BoundedCache[Hashable, CachedRequest] = BoundedCache()

    def get(self, words: Hashable, version: str, metadata: Metadata) -> CachedRequest | None:
        """The order of these words, if the model is what it was."""
        known = self._requests.recent.get(words) or self._requests.get(words)
        if known is None or known.parsed.metadata is not metadata or known.version != version:
            return None
        return known

    def put(self, words: Hashable, known: CachedRequest) -> None:
        """Know this order from now on."""
        self._requests.add(words, known)
