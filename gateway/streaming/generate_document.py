"""The JSON of generate and generate_stream: flat names and values, as the inference request that they mean, and back.
Pure.

A member that is named as an input is that tensor: a scalar or a list, flat or nested, shaped by the model's metadata.
`id` is the id of the request, every other member a parameter, and so is each member of an object `parameters`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import orjson

from mmsup.gateway.protocol import infer_response, json_tensors
from mmsup.gateway.protocol.infer_request import RequestedOutput
from mmsup.gateway.protocol.infer_response import ResponseContext
from mmsup.gateway.protocol.inference_job import OutputTensor
from mmsup.gateway.protocol.json_document import as_list, as_object, parse_error
from mmsup.gateway.protocol.large_json import NumberList
from mmsup.ipc.errors import CallerError
from mmsup.ipc.specs import Metadata, TensorSpec
from mmsup.ipc.tensors.datatypes import element_count, shape_matches

Json = dict[str, Any]  # a JSON object
_IGNORED: Final = "binary_data_output"
"""There is no binary form."""


def infer_document(value: Any, model: str, metadata: Metadata) -> Json:  # any JSON value
    """The document of an inference request; CallerError for values that make up no tensor."""
    given = as_object(value)
    if given is None:
        raise parse_error("it is not an object")
    declared = {each.name: each for each in metadata.inputs}
    members = dict(given)
    if "parameters" in members and "parameters" not in declared:
        inner = as_object(members.pop("parameters"))
        if inner is None:
            raise parse_error("'parameters' must be an object")
        members |= inner
    made: Json = {}
    if "id" not in declared:
        made["id"] = members.pop("id", "")
    inputs = [_input(declared[key], members[key], model, metadata) for key in members if key in declared]
    others = {key: each for key, each in members.items() if key not in declared and key != _IGNORED}
    return {**made, "parameters": others, "inputs": inputs}


def _input(spec: TensorSpec, value: Any, model: str, metadata: Metadata) -> Json:  # any JSON value
    nesting, flat = _flattened(value, spec.name, model)
    shape = tensor_shape(spec.shape, nesting, batched=metadata.max_batch_size > 0)
    if shape is None:
        count, expected = len(flat), list(spec.shape)
        text = (
            f"unexpected shape for input '{spec.name}' for model '{model}': {count} elements do not make up {expected}"
        )
        raise CallerError("bad_request", f"{text}; nest the lists as the tensor is shaped", model=model)
    data = flat if shape or isinstance(flat, NumberList) else flat[0]
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(shape), "data": data}


def tensor_shape(declared: Sequence[int], nesting: Sequence[int], *, batched: bool) -> tuple[int, ...] | None:
    """The shape of a tensor whose value is nested like this, () for a scalar; None if there is none. `declared` is
    without the batch axis."""
    if batched and nesting and shape_matches((-1, *declared), tuple(nesting)):
        return tuple(nesting)
    lead = (1,) if batched else ()
    if nesting and shape_matches(tuple(declared), tuple(nesting)):
        return (*lead, *nesting)
    count, fixed = element_count(nesting), math.prod([each for each in declared if each != -1])
    if not fixed or count % fixed or list(declared).count(-1) > 1:
        return None
    if -1 in declared:
        return (*lead, *(count // fixed if each == -1 else each for each in declared))
    if batched:
        return (count // fixed, *declared)
    return tuple(declared) if count == fixed else None


def _flattened(value: Any, name: str, model: str) -> tuple[tuple[int, ...], list[Any] | NumberList]:  # any JSON value
    """How it is nested, and its elements in order."""
    if isinstance(value, NumberList):
        return (len(value),), value
    level = as_list(value)
    if level is None:
        return (), [value]
    sizes = [len(level)]
    while level and all(isinstance(each, list | NumberList) for each in level):
        rows = [each.tolist() if isinstance(each, NumberList) else each for each in level]
        if len({len(each) for each in rows}) > 1:
            raise CallerError("bad_request", f"input '{name}' for model '{model}': its lists are ragged", model=model)
        sizes.append(len(rows[0]))
        level = [each for row in rows for each in row]
    return tuple(sizes), level


def response_document(
    context: ResponseContext, wanted: Sequence[RequestedOutput], outputs: Sequence[OutputTensor]
) -> bytes:
    """The reply as JSON; an output of one element is a scalar. One of many responses may leave outputs out."""
    present = {each.name for each in outputs}
    chosen = [each for each in wanted if each.spec.name in present]
    made: Json = {"id": context.request_id} if context.request_id else {}
    made |= {"model_name": context.model, "model_version": context.version}
    for each in infer_response.wanted_tensors(context, chosen, outputs):
        made[each.name] = orjson.Fragment(_value(each))
    return orjson.dumps(made)


def _value(tensor: OutputTensor) -> bytes:
    text = json_tensors.to_json(tensor.data, tensor.datatype, tensor.name)
    return text[1:-1] if element_count(tensor.shape) == 1 else text


def error_of_count(model: str) -> CallerError:
    text = "generate expects model to produce exactly 1 response"
    return CallerError("bad_request", f"{text}: use generate_stream for model '{model}'", model=model)
