"""Response templates: the bytes of an earlier response, into which new output bytes are filled. Pure.

There are two kinds: all outputs follow as binary tensors, or all outputs are in the JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from mmsup.gateway.dispatch.reply_validation import ValidatedSignature
from mmsup.gateway.http import response, response_bytes
from mmsup.gateway.protocol import json_tensors
from mmsup.gateway.protocol.infer_request import RequestedOutput
from mmsup.gateway.protocol.infer_response import InferResponse
from mmsup.ipc.messages.data import TensorLocation
from mmsup.ipc.specs import TensorSpec


class ResponseTemplate:
    """Of replies with one signature and all outputs inline."""

    __slots__ = ("_signature",)

    def __init__(self, signature: ValidatedSignature) -> None:
        self._signature = signature

    def matches(self, signature: ValidatedSignature, locations: Sequence[TensorLocation]) -> bool:
        """Whether a reply fits into this template."""
        return signature.packed == self._signature.packed and tuple not in map(type, locations)

    def render(self, locations: Sequence[TensorLocation]) -> bytes:
        raise NotImplementedError


class BinaryResponseTemplate(ResponseTemplate):
    """Constant JSON, then the outputs."""

    __slots__ = ("_body", "_start")

    def __init__(self, signature: ValidatedSignature, built: InferResponse) -> None:
        super().__init__(signature)
        self._start, _ = response_bytes.inference_parts(built, {})
        self._body = built.head

    def render(self, locations: Sequence[TensorLocation]) -> bytes:
        return b"".join((self._start, response_bytes.head_end(), self._body, *cast("Sequence[bytes]", locations)))


class JsonResponseTemplate(ResponseTemplate):
    """JSON with the outputs in it."""

    __slots__ = ("_parts", "_size")

    def __init__(self, signature: ValidatedSignature, parts: list[bytes]) -> None:
        """`parts`: the text before, between and after the outputs."""
        super().__init__(signature)
        self._parts = parts
        self._size = sum(map(len, parts))

    def render(self, locations: Sequence[TensorLocation]) -> bytes:
        pieces, size = [self._parts[0]], self._size
        for spec, location, part in zip(self._signature.outputs, locations, self._parts[1:], strict=True):
            text = _output_json(spec, location)
            size += len(text)
            pieces += (text, part)
        return b"".join((response_bytes.head_start(200, response.JSON, {}, size), response_bytes.head_end(), *pieces))


def make_template(
    signature: ValidatedSignature,
    requested: Sequence[RequestedOutput],
    built: InferResponse,
    locations: Sequence[TensorLocation],
) -> ResponseTemplate | None:
    """The template of a response; None if more than the bytes of its outputs may change."""
    if None in signature.sizes or tuple in map(type, locations) or any(each.classes for each in requested):
        return None
    if [each.spec.name for each in requested] != [each.name for each in signature.outputs]:
        return None
    if all(each.binary for each in requested):
        return BinaryResponseTemplate(signature, built)
    if any(each.binary for each in requested):
        return None
    parts = _text_around_outputs(signature, built.head, locations)
    return None if parts is None else JsonResponseTemplate(signature, parts)


def _text_around_outputs(
    signature: ValidatedSignature, head: bytes, locations: Sequence[TensorLocation]
) -> list[bytes] | None:
    """The text before, between and after the outputs."""
    parts: list[bytes] = []
    for spec, location in zip(signature.outputs, locations, strict=True):
        before, found, head = head.partition(b'"data":' + _output_json(spec, location))
        if not found:
            return None
        parts.append(before + b'"data":')
    return [*parts, head]


def _output_json(spec: TensorSpec, location: TensorLocation) -> bytes:
    assert not isinstance(location, tuple), "inline outputs only"
    return json_tensors.to_json(memoryview(location), spec.datatype, spec.name)
