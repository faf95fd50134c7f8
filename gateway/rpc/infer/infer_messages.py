"""ModelInferRequest and ModelInferResponse: to the form in which requests are checked, and from results. Pure.

A request becomes the document that the HTTP form with binary tensors would have, and the bytes of its tensors; so both
are checked by the same rules, with the same texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from mmsup.gateway.protocol.infer_request import TENSOR_LIMIT
from mmsup.gateway.protocol.inference_job import OutputTensor
from mmsup.gateway.rpc.calls.messages import Message, message_class
from mmsup.ipc.errors import CallerError
from mmsup.ipc.tensors.datatypes import element_count, pack_strings

Json = dict[str, Any]  # a JSON object
EMPTY_FINAL: Final = "triton_enable_empty_final_response"
"""A parameter by which a stream's client asks for a last, empty reply; for the front and not for the model."""
_CONTENTS: Final = {
    "BOOL": ("bool_contents", "?"),
    "INT8": ("int_contents", "i1"),
    "INT16": ("int_contents", "<i2"),
    "INT32": ("int_contents", "<i4"),
    "INT64": ("int64_contents", "<i8"),
    "UINT8": ("uint_contents", "u1"),
    "UINT16": ("uint_contents", "<u2"),
    "UINT32": ("uint_contents", "<u4"),
    "UINT64": ("uint64_contents", "<u8"),
    "FP32": ("fp32_contents", "<f4"),
    "FP64": ("fp64_contents", "<f8"),
}
_REGION: Final = "shared_memory_region"
_REQUEST: Final = message_class("inference.ModelInferRequest")
_RESPONSE: Final = message_class("inference.ModelInferResponse")
RAW_INPUT_TAG: Final = b"\x3a"
"""Of `raw_input_contents`, field 7, the last of a request."""
_RAW_TAG: Final = b"\x32"
"""Of `raw_output_contents`, field 6, the last of a response."""
_REPLY_TAG: Final = b"\x12"
"""Of `infer_response`, field 2 of a ModelStreamInferResponse."""


@dataclass(frozen=True, slots=True)
class RpcRequest:
    """A ModelInferRequest that is not checked yet against the model's metadata."""

    model: str
    version: str
    id: str
    document: Json
    blobs: list[bytes | memoryview]
    """The data of its inputs, in their order."""
    wants_final: bool = False
    """After the last of many responses an empty one, which says so."""

    @property
    def blob_bytes(self) -> int:
        return sum(map(len, self.blobs))

    def without_blobs(self) -> RpcRequest:
        return replace(self, blobs=[])


def parse_message(data: bytes) -> Message:
    """CallerError for bytes that are no ModelInferRequest."""
    return parse(_REQUEST, data)


def parse(kind: type[Message], data: bytes) -> Message:
    """CallerError for bytes that are no message of this kind."""
    from google.protobuf.message import DecodeError  # noqa: PLC0415 - only this line needs it

    try:
        return kind.FromString(data)
    except DecodeError:
        name = kind.DESCRIPTOR.name
        raise CallerError("bad_request", f"failed to parse the request: it is no {name}") from None


def has_no_raw_contents(data: bytes) -> bool:
    """Whether these bytes are a ModelInferRequest of themselves, without tensors that might follow them."""
    try:
        return not parse_message(data).raw_input_contents
    except CallerError:
        return False


def read_request(message: Message) -> RpcRequest:
    """CallerError where raw and typed contents are mixed, or contents are not what their tensor says."""
    model, inputs, raw = message.model_name, list(message.inputs), message.raw_input_contents
    if len(inputs) > TENSOR_LIMIT:
        raise CallerError("bad_request", f"{len(inputs)} inputs, at most {TENSOR_LIMIT} are allowed", model=model)
    shared = [_REGION in each.parameters for each in inputs]
    if raw:
        _check_raw(model, inputs, len(raw), len(inputs) - sum(shared))
    blobs: list[bytes | memoryview] = []
    shown: list[Json] = []
    remaining = iter(raw)
    for tensor, is_shared in zip(inputs, shared, strict=True):
        parameters = scalars(tensor.parameters)
        if not is_shared:
            blobs.append(next(remaining) if raw else _typed_contents(model, tensor))
            parameters["binary_data_size"] = len(blobs[-1])
        shown.append(
            {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape), "parameters": parameters}
        )
    outputs: list[Json] = []
    for each in message.outputs:
        given = scalars(each.parameters)
        outputs.append({"name": each.name, "parameters": given if _REGION in given else {**given, "binary_data": True}})
    parameters = {**scalars(message.parameters), "binary_data_output": True}
    wants_final = parameters.pop(EMPTY_FINAL, False) is True
    document = {"id": message.id, "parameters": parameters, "inputs": shown, "outputs": outputs}
    return RpcRequest(model, message.model_version, message.id, document, blobs, wants_final)


def scalars(parameters: Any) -> Json:  # a map of InferParameter
    """The values of parameters; CallerError for one that has none."""
    made: Json = {}
    for key, value in parameters.items():
        kind = value.WhichOneof("choice")
        if kind is None:
            raise CallerError("bad_request", f"parameter '{key:.80}' has no value")
        made[key] = getattr(value, kind)
    return made


def _check_raw(model: str, inputs: Sequence[Message], given: int, wanted: int) -> None:
    for each in inputs:
        if each.HasField("contents") and each.contents.ListFields():
            text = "contents field must not be specified when using raw_input_contents for"
            raise CallerError("bad_request", f"{text} '{each.name:.200}' for model '{model}'", model=model)
    if given != wanted:
        text = f"expected {wanted} entries of raw_input_contents for model '{model}', one for each input, got {given}"
        raise CallerError("bad_request", text, model=model)


def _typed_contents(model: str, tensor: Message) -> bytes:
    """The data of an input in the field for its datatype."""
    what = f"input '{tensor.name:.200}' for model '{model}'"
    given = {each.name for each, _ in tensor.contents.ListFields()} if tensor.HasField("contents") else set[str]()
    field, dtype = _CONTENTS.get(tensor.datatype, ("bytes_contents", ""))
    if not dtype and tensor.datatype != "BYTES":
        if given or tensor.datatype in ("FP16", "BF16"):
            text = f"{what} is {tensor.datatype or 'without a datatype'}: send it in raw_input_contents"
            raise CallerError("bad_request", text, model=model)
        return b""
    if given - {field}:
        text = f"{what} is {tensor.datatype}: its contents belong into {field}, not {', '.join(sorted(given))}"
        raise CallerError("bad_request", text, model=model)
    values = getattr(tensor.contents, field)
    shape = list(tensor.shape)
    if all(each >= 0 for each in shape) and len(values) != element_count(shape):
        text = f"{what} has {len(values)} elements, its shape {shape} needs {element_count(shape)}"
        raise CallerError("bad_request", text, model=model)
    if not dtype:
        return bytes(pack_strings(list(values)))
    if dtype == "?":
        return np.array(values, dtype=np.bool_).tobytes()
    wide = np.array(values, dtype=_wide(field))
    made = wide.astype(dtype)
    if field in ("int_contents", "uint_contents") and not np.array_equal(made, wide):
        raise CallerError("bad_request", f"{what} has elements beyond the range of {tensor.datatype}", model=model)
    return made.tobytes()


def _wide(field: str) -> str:
    return {
        "int_contents": "<i4",
        "int64_contents": "<i8",
        "uint_contents": "<u4",
        "uint64_contents": "<u8",
        "fp32_contents": "<f4",
        "fp64_contents": "<f8",
    }[field]


def response_parts(
    origin: tuple[str, str, str],
    outputs: Iterable[OutputTensor],
    parameters: Json | None = None,
    regions: Sequence[Json] = (),
) -> list[bytes | memoryview]:
    """A serialised ModelInferResponse. `origin`: model, version, id of the request. The data of the outputs is not
    copied. `regions`: for each output the parameters that say where it was written to, empty if it is sent."""
    model, version, client_id = origin
    message = _RESPONSE(model_name=model, model_version=version, id=client_id)
    for key, value in (parameters or {}).items():
        message.parameters[key].bool_param = value
    raw: list[bytes | memoryview] = []
    for number, each in enumerate(outputs):
        shown = message.outputs.add(name=each.name, datatype=each.datatype, shape=each.shape)
        if regions and regions[number]:
            for key, value in regions[number].items():
                setattr(shown.parameters[key], "string_param" if isinstance(value, str) else "int64_param", value)
            raw += [_RAW_TAG + varint(0), b""]
            continue
        data = each.data.cast("B") if each.data.format != "B" or each.data.ndim != 1 else each.data
        raw += [_RAW_TAG + varint(len(data)), data]
    return [message.SerializeToString(), *raw]


def stream_parts(parts: Sequence[bytes | memoryview]) -> list[bytes | memoryview]:
    """The ModelStreamInferResponse around a ModelInferResponse."""
    return [_REPLY_TAG + varint(sum(len(each) for each in parts)), *parts]


def varint(value: int) -> bytes:
    """https://protobuf.dev/programming-guides/encoding: seven bits a byte, the lowest first."""
    made = bytearray()
    while value > 127:
        made.append(value & 127 | 128)
        value >>= 7
    made.append(value)
    return bytes(made)
