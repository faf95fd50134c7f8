"""What the server answers, as values: results of inferences, metadata, states, errors. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from mmsup.client import tensors
from mmsup.client.errors import InvalidReply, ServerRefused
from mmsup.client.http_message import HEADER_LENGTH, ResponseHead
from mmsup.client.tensors import Array

Json = dict[str, Any]  # a JSON object


@dataclass(frozen=True, slots=True)
class InferResult(Mapping[str, Array]):
    """The outputs by name. `was_cold`: the model was loaded for this request."""

    model: str
    version: str
    id: str
    outputs: Mapping[str, Array]
    parameters: Mapping[str, Any] = field(default_factory=dict[str, Any])  # JSON scalars
    was_cold: bool = False

    def __getitem__(self, name: str) -> Array:
        return self.outputs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.outputs)

    def __len__(self) -> int:
        return len(self.outputs)


@dataclass(frozen=True, slots=True)
class TensorMetadata:
    """`shape`: -1 is any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]


@dataclass(frozen=True, slots=True)
class ServerMetadata:
    name: str
    version: str
    extensions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ModelState:
    """One version of a model in the repository's index."""

    name: str
    version: str
    state: str
    reason: str


@dataclass(frozen=True, slots=True)
class HttpReply:
    """`body` begins where the head says; the arrays of a result are views of it."""

    head: ResponseHead
    body: memoryview

    def json(self) -> Any:  # any JSON value
        return _parse(bytes(self.body))


def _parse(data: bytes | str) -> Any:  # any JSON value
    try:
        return json.loads(data)
    except ValueError:
        raise InvalidReply("the server's answer is no JSON") from None


def refusal(head: ResponseHead, body: bytes, model: str) -> ServerRefused:
    """The error in an answer that is none of success, also one of a proxy in between."""
    try:
        value = json.loads(body)
    except ValueError:
        value = None
    told = cast("Json", value) if isinstance(value, dict) else {}
    text = str(told.get("error") or f"the server answered {head.status}")
    code = str(told.get("code") or ("not_ready" if head.status == 503 else "error"))
    after = head.headers.get("retry-after", "")
    retryable = bool(told.get("retryable", head.status in (429, 503)))
    return ServerRefused(
        head.status,
        code,
        text,
        str(told.get("model") or model),
        retryable=retryable,
        retry_after_s=float(after) if after.isdecimal() else 0.0,
    )


def read_result(reply: HttpReply, into: Mapping[str, Array]) -> InferResult:
    """The result in an answer. `into`: the arrays in shared memory that outputs were written to; ValueError for one
    of another type than its output."""
    header = reply.head.headers.get(HEADER_LENGTH, "")
    size = int(header) if header.isdecimal() else len(reply.body)
    document = _object(_parse(bytes(reply.body[:size])))
    outputs: dict[str, Array] = {}
    others: list[str] = []
    at = size
    try:
        for each in document["outputs"]:
            name, datatype, shape = each["name"], each["datatype"], each["shape"]
            parameters = each.get("parameters", {})
            if name in into:
                if tensors.datatype_of(into[name]) != datatype:
                    others.append(f"output {name!r} is {datatype}, and the array for it has {into[name].dtype}")
                outputs[name] = into[name].reshape(-1)[: _count(shape)].reshape(shape)
            elif "binary_data_size" in parameters:
                end = at + parameters["binary_data_size"]
                outputs[name] = tensors.from_bytes(reply.body[at:end], datatype, shape)
                at = end
            else:
                outputs[name] = tensors.from_json(each["data"], datatype, shape)
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidReply(f"the server's answer has outputs that are none: {error}") from None
    if others:
        raise ValueError("; ".join(others))
    return InferResult(*_origin(document), outputs, document.get("parameters", {}), _was_cold(reply.head))


def read_event(text: str, model: str, datatypes: Mapping[str, str], head: ResponseHead) -> InferResult:
    """One response of a stream; ServerRefused if it is an error. `datatypes`: of the model's outputs, by name."""
    document = _object(_parse(text))
    if "error" in document and "model_name" not in document:
        code, retryable = str(document.get("code", "error")), bool(document.get("retryable", False))
        raise ServerRefused(200, code, str(document["error"]), model, retryable=retryable)
    try:
        outputs = {name: tensors.from_json(document[name], datatypes[name]) for name in datatypes if name in document}
    except (TypeError, ValueError) as error:
        raise InvalidReply(f"the server's answer has outputs that are none: {error}", model) from None
    return InferResult(*_origin(document), outputs, was_cold=_was_cold(head))


def read_server(reply: HttpReply) -> ServerMetadata:
    document = _object(reply.json())
    return ServerMetadata(str(document["name"]), str(document["version"]), tuple(document.get("extensions", ())))


def read_model(reply: HttpReply) -> ModelMetadata:
    document = _object(reply.json())
    inputs, outputs = (
        tuple(TensorMetadata(each["name"], each["datatype"], tuple(each["shape"])) for each in document.get(key, ()))
        for key in ("inputs", "outputs")
    )
    versions = tuple(document.get("versions", ()))
    return ModelMetadata(str(document["name"]), versions, str(document.get("platform", "")), inputs, outputs)


def read_index(reply: HttpReply) -> list[ModelState]:
    rows = cast("list[Json]", reply.json())
    keys = ("name", "version", "state", "reason")
    return [ModelState(*(str(each.get(key, "")) for key in keys)) for each in rows]


def _was_cold(head: ResponseHead) -> bool:
    return head.headers.get("x-mmsup-cold") == "1"


def _object(value: Any) -> Json:  # any JSON value
    if not isinstance(value, dict):
        raise InvalidReply("the server's answer is no JSON object")
    return cast("Json", value)


def _origin(document: Json) -> tuple[str, str, str]:
    return str(document.get("model_name", "")), str(document.get("model_version", "")), str(document.get("id", ""))


def _count(shape: list[int]) -> int:
    count = 1
    for each in shape:
        count *= each
    return count
