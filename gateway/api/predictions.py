"""KServe's first protocol: `instances` as the inputs of the second one, and outputs as `predictions`. Pure.

Each instance is one row of every input: the value itself where the model has one input, else an object of its inputs by
name. So the first axis of every input and output has to be the rows, whether the model has a batch axis or not.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from typing import Any, Final, cast

import orjson

from mmsup.gateway.protocol import json_tensors
from mmsup.gateway.protocol.inference_job import OutputTensor
from mmsup.gateway.protocol.json_document import as_list, as_object, parse_error
from mmsup.gateway.protocol.large_json import NumberList
from mmsup.ipc.errors import CallerError
from mmsup.ipc.specs import Metadata, TensorSpec
from mmsup.ipc.tensors.datatypes import RANK_LIMIT, element_count, unpack_strings
from mmsup.ipc.tensors.numpy_arrays import as_array

Json = dict[str, Any]  # a JSON object
BASE64: Final = "b64"
"""The member of an object that stands for a string of bytes: `{"b64": "AP8="}`."""


def infer_document(document: Any, model: str, metadata: Metadata) -> tuple[Json, int]:  # any JSON value
    """The request of the second protocol that asks the same, and its number of rows; CallerError."""
    whole = as_object(document)
    if whole is None:
        raise parse_error("it is not an object")
    instances = whole.get("instances")
    rows: list[Any] | NumberList | None = instances if isinstance(instances, NumberList) else as_list(instances)
    if not rows:
        raise parse_error("'instances' must be a list with one element or more")
    names = [each.name for each in metadata.inputs]
    is_named = isinstance(rows, list) and all(isinstance(each, dict) and BASE64 not in each for each in rows)
    if not is_named and len(names) != 1:
        text = f"each of 'instances' must be an object with the inputs of model '{model}': {', '.join(names)}"
        raise CallerError("bad_request", text, model=model)
    columns = _columns(cast("list[Json]", rows), names, model) if is_named else {names[0]: rows}
    inputs = [
        _input(each, columns[each.name], model, is_batched=metadata.max_batch_size > 0)
        for each in metadata.inputs
        if each.name in columns
    ]
    return {"inputs": inputs, "parameters": whole.get("parameters") or {}}, len(rows)


def _columns(rows: list[Json], names: list[str], model: str) -> dict[str, list[Any] | NumberList]:  # values by input
    given = rows[0].keys()
    strange = sorted(given - set(names))
    if strange:
        text = f"an instance for model '{model}' has '{strange[0]:.80}', its inputs are: {', '.join(names)}"
        raise CallerError("bad_request", text, model=model)
    if any(each.keys() != given for each in rows):
        raise CallerError("bad_request", f"the instances for model '{model}' differ in their members", model=model)
    return {name: [each[name] for each in rows] for name in given}


def _input(spec: TensorSpec, values: list[Any] | NumberList, model: str, *, is_batched: bool) -> Json:  # JSON values
    shape = _shape(values)
    declared = (-1, *spec.shape) if is_batched else spec.shape
    while len(shape) < len(declared) and declared[len(shape)] == 1:
        shape.append(1)
    if len(shape) != len(declared) or not declared:
        text = f"input '{spec.name}' of model '{model}' has shape {list(declared)}, these instances make {shape}"
        row = f"an instance is a row of shape {list(declared[1:])}" if declared else "it has no rows: ask at /v2"
        raise CallerError("bad_request", f"{text}; {row}", model=model)
    made: Json = {"name": spec.name, "datatype": spec.datatype, "shape": shape, "data": values}
    if spec.datatype == "BYTES" and isinstance(values, list) and isinstance(_first_leaf(values), dict):
        made |= {"data": _unwrapped(values, spec.name, model), "parameters": {"content_type": "base64"}}
    return made


def _shape(values: Any) -> list[int]:  # JSON values, nested
    shape: list[int] = []
    while isinstance(values, list | NumberList) and len(shape) <= RANK_LIMIT:
        shape.append(len(values))
        values = values[0] if isinstance(values, list) and values else None
    return shape


def _first_leaf(values: Any) -> Any:  # JSON values, nested
    while isinstance(values, list) and values:
        values = values[0]
    return values


def _unwrapped(values: list[Any], name: str, model: str) -> list[Any]:  # JSON values, nested alike
    """The strings of `{"b64": string}`, in the same nesting."""
    made: list[Any] = []
    for each in values:
        if isinstance(each, list):
            made.append(_unwrapped(each, name, model))
        elif isinstance(each, dict) and each.keys() == {BASE64}:
            made.append(each[BASE64])
        else:
            text = f"input '{name}' for model '{model}' has objects with '{BASE64}' and others"
            raise CallerError("bad_request", text, model=model)
    return made


def predictions(model: str, outputs: Sequence[OutputTensor], rows: int) -> bytes:
    """The reply: a list of rows; each is a value if there is one output, else an object of them by name. `outputs` have
    been checked."""
    for each in outputs:
        _check(model, each, rows)
    if len(outputs) == 1:
        return b"".join([b'{"predictions":', *_nested(outputs[0]), b"}"])
    names = [orjson.dumps(each.name) + b":" for each in outputs]
    columns = [_rows(each) for each in outputs]
    made = [b"{" + b",".join(map(b"".join, zip(names, row, strict=True))) + b"}" for row in zip(*columns, strict=True)]
    return b'{"predictions":[' + b",".join(made) + b"]}"


def _check(model: str, tensor: OutputTensor, rows: int) -> None:
    """CallerError for an output that is no row for each instance."""
    if not tensor.shape or tensor.shape[0] != rows:
        text = f"output '{tensor.name}' of model '{model}' has shape {list(tensor.shape)} for {rows} instances"
        raise CallerError("bad_request", f"{text}, which is not one row for each: ask at /v2", model=model)


def _nested(tensor: OutputTensor) -> Iterator[bytes]:
    """The JSON of an output, in pieces."""
    if tensor.datatype == "BYTES":
        return iter((b"[", b",".join(_rows(tensor)), b"]"))
    return json_tensors.nested_pieces(as_array(tensor.data, tensor.datatype, tensor.shape))


def _rows(tensor: OutputTensor) -> list[bytes]:
    """The JSON of each row of an output."""
    if tensor.datatype == "BYTES":
        cells = _strings(tensor)
        for axis in range(len(tensor.shape) - 1, 0, -1):
            size = tensor.shape[axis]
            starts = [at * size for at in range(element_count(tensor.shape[:axis]))]
            cells = [b"[" + b",".join(cells[at : at + size]) + b"]" for at in starts]
        return cells
    array = as_array(tensor.data, tensor.datatype, tensor.shape)
    if array.ndim > 1:
        return [json_tensors.nested_to_json(each) for each in array]
    return [json_tensors.nested_to_json(array[at : at + 1])[1:-1] for at in range(len(array))]


def _strings(tensor: OutputTensor) -> list[bytes]:
    strings = list(unpack_strings(memoryview(tensor.data)))
    try:
        return [orjson.dumps(each.decode()) for each in strings]
    except UnicodeDecodeError:
        return [orjson.dumps({BASE64: base64.b64encode(each).decode()}) for each in strings]
