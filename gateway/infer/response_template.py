"""Replies that were given before: their words are there, only the bytes of the outputs change. Pure.

Two kinds: outputs that all follow as bytes, and outputs that all stand in the JSON.
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


class BinaryResponseTemplate:
    """JSON that never changes, then the outputs."""

    __slots__ = ("_body", "_signature", "_start")

    def __init__(self, said: ValidatedSignature, made: InferResponse) -> None:
        self._signature = said
        self._start, _ = response_bytes.inference_parts(made, {})
        self._body = made.head

    def matches(self, said: ValidatedSignature, places: Sequence[TensorLocation]) -> bool:
        """Whether a result has the same words, and is all inline."""
        return (said is self._signature or said.packed == self._signature.packed) and tuple not in map(type, places)

    def render(self, places: Sequence[TensorLocation]) -> bytes:
        """The whole reply with these outputs."""
        return b"".join((self._start, response_bytes.head_end(), self._body, *cast("Sequence[bytes]", places)))


class JsonResponseTemplate:
    """JSON with the outputs in it."""

    __slots__ = ("_parts", "_signature", "_size")

    def __init__(self, said: ValidatedSignature, parts: list[bytes]) -> None:
        """`parts`: what stands before, between and behind the outputs."""
        self._signature = said
        self._parts = parts
        self._size = sum(map(len, parts))

    def matches(self, said: ValidatedSignature, places: Sequence[TensorLocation]) -> bool:
        """Whether a result has the same words, and is all inline."""
        return (said is self._signature or said.packed == self._signature.packed) and tuple not in map(type, places)

    def render(self, places: Sequence[TensorLocation]) -> bytes:
        """The whole reply with these outputs."""
        pieces, size = [self._parts[0]], self._size
        for spec, place, part in zip(self._signature.outputs, places, self._parts[1:], strict=True):
            text = _output_json(spec, place)
            size += len(text)
            pieces += (text, part)
        return b"".join((response_bytes.head_start(200, response.JSON, {}, size), response_bytes.head_end(), *pieces))


ResponseTemplate = BinaryResponseTemplate | JsonResponseTemplate


def make_template(
    said: ValidatedSignature, wanted: Sequence[RequestedOutput], made: InferResponse, places: Sequence[TensorLocation]
) -> ResponseTemplate | None:
    """How to say this reply again with other outputs; None if more than they may change."""
    if None in said.sizes or tuple in map(type, places) or any(each.classes for each in wanted):
        return None
    if [each.spec.name for each in wanted] != [each.name for each in said.outputs]:
        return None
    if all(each.binary for each in wanted):
        return BinaryResponseTemplate(said, made)
    if any(each.binary for each in wanted):
        return None
    parts = _text_around_outputs(said, made.head, places)
    return None if parts is None else JsonResponseTemplate(said, parts)


def _text_around_outputs(said: ValidatedSignature, head: bytes, places: Sequence[TensorLocation]) -> list[bytes] | None:
    """The text before, between and behind the outputs."""
    parts: list[bytes] = []
    for spec, place in zip(said.outputs, places, strict=True):
        text = _output_json(spec, place)
        before, mark, head = head.partition(b'"data":' + text)
        if not mark:
            return None
        parts.append(before + b'"data":')
    return [*parts, head]


def _output_json(spec: TensorSpec, place: TensorLocation) -> bytes:
    assert not isinstance(place, tuple), "inline outputs only"
    return json_tensors.to_json(memoryview(place), spec.datatype, spec.name)
