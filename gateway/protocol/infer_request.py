"""Inference requests: parsing and validation of the JSON against the model's metadata. Pure.

Everything in a request is checked here before it is sent to a worker. Sizes are computed in unbounded integers. Unknown
keys are ignored, as the protocol requires.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from mmsup.gateway.client_memory.region_rules import RegionSpan
from mmsup.gateway.protocol import json_tensors
from mmsup.gateway.protocol.binary_tensors import Blobs, check_strings
from mmsup.gateway.protocol.inference_job import InputTensor
from mmsup.gateway.protocol.json_document import as_list, as_object, parse_error
from mmsup.gateway.protocol.sequences.sequence_parameters import SequenceFlags, sequence_flags
from mmsup.ipc.errors import CallerError
from mmsup.ipc.specs import PRIORITY_LEVELS, Metadata, TensorSpec
from mmsup.ipc.tensors.datatypes import ITEM_BYTES, RANK_LIMIT, element_count, shape_matches

REGION: Final = "shared_memory_region"
"""Parameter of a tensor."""
TENSOR_LIMIT: Final = 64
PARAMETER_LIMIT: Final = 256
PARAMETER_BYTES_LIMIT: Final = 1 << 16
"""Parameters travel in the message; large data belongs in tensors."""
ID_LIMIT: Final = 1024
ELEMENT_LIMIT: Final = 1 << 40
"""Over the dimensions that are not 0: an empty tensor may still have a shape that no array library accepts."""
INTEGERS: Final = range(-(1 << 63), 1 << 64)
_RESERVED: Final = frozenset(
    {"sequence_id", "sequence_start", "sequence_end", "priority", "timeout", "binary_data_output", "headers"}
)
_UNCLASSIFIABLE: Final = frozenset({"BYTES", "BOOL"})

Json = dict[str, Any]  # a JSON object, whose values are checked below


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """One output of the response; `classes` > 0: as that many classifications. `region`: where it goes instead of into
    the response."""

    spec: TensorSpec
    binary: bool
    classes: int = 0
    base64: bool = False
    """Its strings are in base64, as MLServer's `content_type` says it."""
    region: RegionSpan | None = None


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A valid request."""

    inputs: list[InputTensor]
    outputs: list[RequestedOutput]
    """In the order of the response; all of the model if the client named none."""
    id: str = ""
    timeout_us: int = 0
    """0: the default of the model."""
    parameters: Json = field(default_factory=dict[str, Any])  # scalars
    priority: int = 0
    """1 is the highest; 0: the default of the model."""
    sequence: SequenceFlags | None = None

    @property
    def uses_regions(self) -> bool:
        """Whether a tensor is in memory that the client shares."""
        return any(each.region is not None for each in self.inputs) or any(each.region for each in self.outputs)


def request_id(document: Any) -> str:  # any JSON value
    """The client's request id, empty if it gave none."""
    whole = as_object(document)
    if whole is None:
        raise parse_error("it is not an object")
    given = whole.get("id", "")
    if not isinstance(given, str) or len(given) > ID_LIMIT:
        raise parse_error(f"'id' must be a string of at most {ID_LIMIT} characters")
    return given


def timeout_and_priority(document: Any) -> tuple[int, int]:  # any JSON value
    """Timeout in microseconds and priority, of a request that is not parsed yet; 0 if it has none."""
    whole = as_object(document)
    if whole is None:
        raise parse_error("it is not an object")
    parameters = _object(whole, "parameters")
    return _count(parameters, "timeout"), _priority(parameters)


def parse_request(
    document: Json, model: str, metadata: Metadata, blobs: Blobs, *, may_stream: bool = False
) -> InferRequest:
    """The request in a document and its binary data; CallerError names model and tensor. `may_stream`: any number of
    responses can be delivered."""
    if metadata.decoupled and not may_stream:
        raise decoupled_error(model)
    parameters = _object(document, "parameters")
    inputs = _inputs(_tensors(document, "inputs"), model, metadata, blobs)
    blobs.finish(model)
    all_binary = _flag(parameters, "binary_data_output", default=False)
    outputs = _outputs(_tensors(document, "outputs"), model, metadata, all_binary)
    for_model, client_id = _model_parameters(parameters), request_id(document)
    sequence = sequence_flags(parameters) if parameters else None
    timeout_us, priority = _count(parameters, "timeout"), _priority(parameters)
    request = InferRequest(inputs, outputs, client_id, timeout_us, for_model, priority, sequence)
    if metadata.decoupled and request.uses_regions:
        text = f"model '{model}' is decoupled, for which no shared memory of clients is used: send and take the tensors"
        raise CallerError("not_implemented", text, model=model)
    return request


def decoupled_error(model: str) -> CallerError:
    text = f"model '{model}' is decoupled, it answers a request any number of times: use generate_stream or generate"
    return CallerError("not_implemented", f"{text}, or ModelStreamInfer over gRPC", model=model)


def parse_raw_request(given: InputTensor, model: str, metadata: Metadata) -> InferRequest:
    """A raw request: all outputs, in binary."""
    if metadata.decoupled:
        raise decoupled_error(model)
    return InferRequest([given], [RequestedOutput(each, binary=True) for each in metadata.outputs])


# Members of the request.


def _object(holder: Json, key: str) -> Json:
    value = holder.get(key)
    made = {} if value is None else as_object(value)
    if made is None:
        raise parse_error(f"'{key}' must be an object")
    return made


def _tensors(document: Json, key: str) -> list[Json]:
    value = document.get(key)
    tensors = [] if value is None else as_list(value)
    if tensors is None or not all(isinstance(each, dict) for each in tensors):
        raise parse_error(f"'{key}' must be a list of objects")
    if len(tensors) > TENSOR_LIMIT:
        raise parse_error(f"'{key}' has {len(tensors)} tensors, at most {TENSOR_LIMIT} are allowed")
    names: set[str] = set()
    for each in tensors:
        name = each.get("name")
        if not isinstance(name, str):
            raise parse_error(f"each of '{key}' must have a 'name' that is a string")
        if name in names:
            raise CallerError("bad_request", f"'{name:.200}' is named twice in '{key}'")
        names.add(name)
    return tensors


def _flag(parameters: Json, key: str, *, default: bool) -> bool:
    value = parameters.get(key, default)
    if not isinstance(value, bool):
        raise parse_error(f"parameter '{key}' must be true or false")
    return value


def _count(parameters: Json, key: str) -> int:
    value = parameters.get(key, 0)
    if type(value) is not int or value < 0:
        raise parse_error(f"parameter '{key}' must be an integer that is not negative")
    return value


def _priority(parameters: Json) -> int:
    """A priority that no model has counts as 0, also one that is too large for the wire."""
    priority = _count(parameters, "priority") if parameters else 0
    return priority if priority <= PRIORITY_LEVELS else 0


def _model_parameters(parameters: Json) -> Json:
    """The parameters for the model; the reserved ones are checked and removed."""
    if not parameters:
        return {}
    if "headers" in parameters:
        raise parse_error("parameter 'headers' is reserved")
    made = {key: value for key, value in parameters.items() if key not in _RESERVED}
    if len(made) > PARAMETER_LIMIT:
        raise parse_error(f"{len(made)} parameters, at most {PARAMETER_LIMIT} are allowed")
    size = 0
    for key, value in made.items():
        if key.startswith("triton_"):
            raise parse_error(f"parameter '{key:.80}' is reserved: names that begin with triton_ are the server's")
        if not isinstance(value, bool | int | float | str) or (isinstance(value, int) and value not in INTEGERS):
            raise parse_error(f"parameter '{key:.80}' must be true, false, a number of at most 64 bits, or a string")
        size += len(key) + (len(value) if isinstance(value, str) else 8)
    if size > PARAMETER_BYTES_LIMIT:
        raise parse_error(f"parameters of {size} bytes, at most {PARAMETER_BYTES_LIMIT} are allowed")
    return made


# Inputs.


def _inputs(given: list[Json], model: str, metadata: Metadata, blobs: Blobs) -> list[InputTensor]:
    declared = {each.name: each for each in metadata.inputs}
    for each in given:
        if each["name"] not in declared:
            text = f"unexpected inference input '{each['name']:.200}' for model '{model}'"
            raise CallerError("bad_request", f"{text}, allowed inputs are: {', '.join(declared)}", model=model)
    present = {each["name"] for each in given}
    missing = [each.name for each in metadata.inputs if not each.optional and each.name not in present]
    if missing:
        least = sum(not each.optional for each in metadata.inputs)
        count = f"{least} to {len(declared)}" if least < len(declared) else f"{least}"
        text = (
            f"expected {count} inputs but got {len(given)} inputs for model '{model}'. "
            f"Got input(s) {sorted(present)}, but missing required input(s) {missing}. "
            f"Please provide all required input(s)."
        )
        raise CallerError("bad_request", text, model=model)
    made = [_input(each, declared[each["name"]], model, metadata.max_batch_size, blobs) for each in given]
    if metadata.max_batch_size:
        batches = {each.shape[0] for each in made}
        if len(batches) > 1:
            text = f"the inputs for model '{model}' differ in batch size: {sorted(batches)}"
            raise CallerError("bad_request", text, model=model)
    return made


def _input(given: Json, spec: TensorSpec, model: str, max_batch_size: int, blobs: Blobs) -> InputTensor:
    if given.get("datatype") != spec.datatype:
        got = given.get("datatype")
        shown = f"'{got:.40}'" if isinstance(got, str) else "missing"
        text = f"inference input '{spec.name}' data-type is {shown}, but model '{model}' expects '{spec.datatype}'"
        raise CallerError("bad_request", text, model=model)
    shape = _shape(given.get("shape"), spec, model, max_batch_size)
    parameters = _object(given, "parameters")
    span = _region_span(parameters, f"input '{spec.name}' for model '{model}'", model)
    sources = ["data"] * ("data" in given) + ["binary_data_size"] * ("binary_data_size" in parameters)
    sources += [REGION] * (span is not None)
    if len(sources) != 1:
        has = f"both '{sources[0]}' and '{sources[1]}'" if sources else "neither 'data' nor 'binary_data_size'"
        raise CallerError("bad_request", f"input '{spec.name}' for model '{model}' has {has}", model=model)
    base64 = _is_base64(parameters, spec, f"input '{spec.name}' for model '{model}'")
    if span is not None:
        return _shared_data(span, spec, shape, model)
    if "data" in given:
        try:
            data = json_tensors.to_bytes(given["data"], spec.datatype, shape, is_base64=base64)
        except json_tensors.TensorDataError as error:
            raise CallerError("bad_request", f"input '{spec.name}' for model '{model}': {error}", model=model) from None
        return InputTensor(spec.name, spec.datatype, shape, data=data)
    return _binary_data(_count(parameters, "binary_data_size"), spec, shape, model, blobs)


def _shape(given: Any, spec: TensorSpec, model: str, max_batch_size: int) -> tuple[int, ...]:  # any JSON value
    sizes = as_list(given)
    if sizes is None or not all(type(each) is int for each in sizes):
        raise parse_error(f"'shape' of input '{spec.name:.200}' must be a list of integers")
    if len(sizes) > RANK_LIMIT:
        raise parse_error(f"input '{spec.name:.200}' has {len(sizes)} dimensions, at most {RANK_LIMIT} are allowed")
    shape: tuple[int, ...] = tuple(sizes)
    expected = (-1, *spec.shape) if max_batch_size else spec.shape
    what = f"'shape' of input '{spec.name}' for model '{model}'"
    if any(each < 0 for each in shape):
        text = f"{what} is {_shape_text(shape)}: give the sizes of this request's tensor, none of them negative"
        raise CallerError("bad_request", text, model=model)
    if element_count([each or 1 for each in shape]) > ELEMENT_LIMIT:
        text = f"{what} is {_shape_text(shape)}, which are more than {ELEMENT_LIMIT} elements"
        raise CallerError("bad_request", text, model=model)
    if not shape_matches(expected, shape):
        text = f"unexpected shape for input '{spec.name}' for model '{model}'."
        text = f"{text} Expected {_shape_text(expected)}, got {_shape_text(shape)}"
        raise CallerError("bad_request", text, model=model)
    if max_batch_size and not 1 <= shape[0] <= max_batch_size:
        text = f"inference request batch-size must be >= 1 and <= {max_batch_size} for '{model}'"
        raise CallerError("bad_request", f"{text}: input '{spec.name}' has {shape[0]}", model=model)
    return shape


def _shape_text(shape: tuple[int, ...]) -> str:
    return f"[{','.join(map(str, shape))}]"


def _binary_data(size: int, spec: TensorSpec, shape: tuple[int, ...], model: str, blobs: Blobs) -> InputTensor:
    item = ITEM_BYTES[spec.datatype]
    what = f"input '{spec.name}' for model '{model}'"
    needed = element_count(shape) * item
    if item and size != needed:
        text = f"{what} has binary_data_size {size}, shape {_shape_text(shape)} and {spec.datatype} need {needed}"
        raise CallerError("bad_request", text, model=model)
    offset = blobs.take(size, what)
    if not item:
        try:
            check_strings(blobs.view(offset, size), element_count(shape))
        except ValueError as error:
            raise CallerError("bad_request", f"{what}: {error}", model=model) from None
    return InputTensor(spec.name, spec.datatype, shape, offset, size)


def _shared_data(span: RegionSpan, spec: TensorSpec, shape: tuple[int, ...], model: str) -> InputTensor:
    """An input that is still in its region: strings are checked when they are copied."""
    needed = element_count(shape) * ITEM_BYTES[spec.datatype]
    if ITEM_BYTES[spec.datatype] and span.size != needed:
        text = f"input '{spec.name}' for model '{model}' has shared_memory_byte_size {span.size}, shape"
        text = f"{text} {_shape_text(shape)} and {spec.datatype} need {needed}"
        raise CallerError("bad_request", text, model=model)
    return InputTensor(spec.name, spec.datatype, shape, size=span.size, region=span)


def _region_span(parameters: Json, what: str, model: str) -> RegionSpan | None:
    """The part of a region that the parameters of a tensor name, if they do."""
    given = [key for key in parameters if key.startswith("shared_memory_")]
    if not given:
        return None
    name = parameters.get(REGION)
    if not isinstance(name, str) or not name:
        raise CallerError("bad_request", f"{what} has '{given[0]:.80}' and no '{REGION}' that is a name", model=model)
    if "shared_memory_byte_size" not in parameters:
        raise CallerError("bad_request", f"{what} has '{REGION}' and no 'shared_memory_byte_size'", model=model)
    return RegionSpan(name, _count(parameters, "shared_memory_offset"), _count(parameters, "shared_memory_byte_size"))


def _is_base64(parameters: Json, spec: TensorSpec, what: str) -> bool:
    """Whether its strings are in base64 in JSON. Other content types of MLServer say nothing that is not known."""
    if parameters.get("content_type") != "base64":
        return False
    if spec.datatype != "BYTES" or "binary_data_size" in parameters:
        sent = "sent as binary data" if spec.datatype == "BYTES" else spec.datatype
        raise CallerError("bad_request", f"{what} is {sent}: content_type base64 is for BYTES in JSON")
    return True


# Outputs.


def _outputs(given: list[Json], model: str, metadata: Metadata, all_binary: bool) -> list[RequestedOutput]:
    if not given:
        wanted = [RequestedOutput(each, all_binary) for each in metadata.outputs]
    else:
        declared = {each.name: each for each in metadata.outputs}
        wanted = [_output(each, declared, model, all_binary) for each in given]
    for each in wanted:
        in_json = not each.binary and not each.classes and each.region is None
        if in_json and each.spec.datatype in json_tensors.BINARY_ONLY:
            text = f"output '{each.spec.name}' of model '{model}' is {each.spec.datatype}, which has no form in JSON"
            raise CallerError("bad_request", f"{text}: ask for it with binary_data", model=model)
    return wanted


def _output(given: Json, declared: dict[str, TensorSpec], model: str, all_binary: bool) -> RequestedOutput:
    name = given["name"]
    spec = declared.get(name)
    if spec is None:
        text = f"unexpected inference output '{name:.200}' for model '{model}'"
        raise CallerError("bad_request", f"{text}, allowed outputs are: {', '.join(declared)}", model=model)
    parameters = _object(given, "parameters")
    span = _region_span(parameters, f"output '{name:.200}' of model '{model}'", model)
    classes = _count(parameters, "classification")
    if span is not None:
        if classes or _flag(parameters, "binary_data", default=False):
            other = "classification" if classes else "binary_data"
            text = f"output '{name}' of model '{model}' has both '{REGION}' and '{other}'"
            raise CallerError("bad_request", text, model=model)
        return RequestedOutput(spec, binary=False, region=span)
    if classes and spec.datatype in _UNCLASSIFIABLE:
        text = f"output '{name}' of model '{model}' is {spec.datatype}, which cannot be classified"
        raise CallerError("bad_request", text, model=model)
    base64 = _is_base64(parameters, spec, f"output '{name}' of model '{model}'")
    binary = _flag(parameters, "binary_data", default=all_binary and not base64)
    if base64 and (binary or classes):
        text = f"output '{name}' of model '{model}' is wanted in base64 and as {'binary data' if binary else 'classes'}"
        raise CallerError("bad_request", f"{text}: one of the two is possible", model=model)
    return RequestedOutput(spec, binary, classes, base64)
