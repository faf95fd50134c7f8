"""Response templates: the bytes of an earlier response, into which new output bytes and ids are filled. Pure.

There are two kinds: all outputs follow as binary tensors, or all outputs are in the JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, cast

from mmsup.gateway.dispatch.reply_validation import ValidatedSignature
from mmsup.gateway.http import response_bytes
from mmsup.gateway.http.request import ID_HEADER
from mmsup.gateway.protocol import json_tensors
from mmsup.gateway.protocol.infer_request import RequestedOutput
from mmsup.gateway.protocol.infer_response import InferResponse
from mmsup.ipc.messages.data import TensorLocation
from mmsup.ipc.specs import TensorSpec

_MARK: Final = "echo"


class ResponseTemplate:
    """Of replies with one signature and all outputs inline."""

    __slots__ = ("_body", "_echo_start", "_signature", "_start", "constant")

    def __init__(self, signature: ValidatedSignature, built: InferResponse, body: bytes, json_id: bytes) -> None:
        """`body`: the JSON up to the first output that is filled in. `json_id`: the id in it, if others may have
        another one, of the same length."""
        self._signature = signature
        self._start = response_bytes.inference_start(built, {})
        """Up to the value of Content-Length."""
        before, _, after = response_bytes.inference_start(built, {ID_HEADER: _MARK}).partition(_MARK.encode())
        self._echo_start = before, after
        before_id, _, after_id = body.partition(b',"id":"%b"' % json_id) if json_id else (body, b"", b"")
        self._body = (before_id + b',"id":"', b'"' + after_id) if json_id else (body, b"")
        self.constant: tuple[bytes, bytes] | None = None
        """What is before the date and between it and the outputs, if these follow and there is no id."""

    def matches(self, signature: ValidatedSignature, locations: Sequence[TensorLocation]) -> bool:
        """Whether a reply fits into this template."""
        return signature.packed == self._signature.packed and tuple not in map(type, locations)

    def render(self, locations: Sequence[TensorLocation], date: bytes, json_id: str, echo_id: str) -> bytes:
        """The response. `date`: of `head_end`; `json_id`: of the length of the template's; `echo_id`: what its head
        repeats."""
        raise NotImplementedError

    def _start_with_id(self, echo_id: str) -> bytes:
        before, after = self._echo_start
        return b"".join((before, echo_id.encode(), after))

    def _body_with_id(self, json_id: str) -> bytes:
        before, after = self._body
        return b"".join((before, json_id.encode(), after))


class BinaryResponseTemplate(ResponseTemplate):
    """Constant JSON, then the outputs."""

    __slots__ = ("_length",)

    def __init__(self, signature: ValidatedSignature, built: InferResponse, json_id: bytes) -> None:
        super().__init__(signature, built, built.head, json_id)
        self._length = b"%d\r\nDate: " % built.size
        if not json_id:
            self.constant = self._start + self._length, built.head

    def render(self, locations: Sequence[TensorLocation], date: bytes, json_id: str, echo_id: str) -> bytes:
        start = self._start_with_id(echo_id) if echo_id else self._start
        body = self._body_with_id(json_id) if json_id else self._body[0]
        return b"".join((start, self._length, date, body, *cast("Sequence[bytes]", locations)))


class JsonResponseTemplate(ResponseTemplate):
    """JSON with the outputs in it."""

    __slots__ = ("_outputs", "_size")

    def __init__(self, signature: ValidatedSignature, built: InferResponse, parts: list[bytes], json_id: bytes) -> None:
        """`parts`: the text before, between and after the outputs."""
        super().__init__(signature, built, parts[0], json_id)
        self._size = sum(map(len, parts))
        self._outputs = list(zip(signature.outputs, parts[1:], strict=True))

    def render(self, locations: Sequence[TensorLocation], date: bytes, json_id: str, echo_id: str) -> bytes:
        start = self._start_with_id(echo_id) if echo_id else self._start
        body = self._body_with_id(json_id) if json_id else self._body[0]
        texts: list[bytes] = []
        size = self._size
        for (spec, after), location in zip(self._outputs, locations, strict=True):
            text = _output_json(spec, location)
            size += len(text)
            texts += text, after
        return b"".join((start, b"%d\r\nDate: " % size, date, body, *texts))


def make_template(
    signature: ValidatedSignature,
    requested: Sequence[RequestedOutput],
    built: InferResponse,
    locations: Sequence[TensorLocation],
    json_id: str = "",
) -> ResponseTemplate | None:
    """The template of a response; None if more than the bytes of its outputs and its id may change."""
    if (
        None in signature.sizes
        or tuple in map(type, locations)
        or any(each.classes or each.base64 for each in requested)
    ):
        return None
    if [each.spec.name for each in requested] != [each.name for each in signature.outputs]:
        return None
    if all(each.binary for each in requested):
        return BinaryResponseTemplate(signature, built, json_id.encode())
    if any(each.binary for each in requested):
        return None
    parts = _text_around_outputs(signature, built.head, locations)
    return None if parts is None else JsonResponseTemplate(signature, built, parts, json_id.encode())


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
    return json_tensors.to_json(location, spec.datatype, spec.name)
