"""A request to copy for a model, made of its metadata: zeros, or empty strings, in the shapes that it takes. Pure."""

from __future__ import annotations

import json
import shlex
from typing import Any, Final

from mmsup.ipc.specs import Metadata, TensorSpec
from mmsup.ipc.tensors.datatypes import element_count, size_bytes

ELEMENTS_LIMIT: Final = 64
"""In JSON, all inputs together."""
_BINARY_ONLY: Final = frozenset({"FP16", "BF16"})
_RAW: Final = "Inference-Header-Content-Length: 0"


def example_request(name: str, metadata: Metadata, host: str) -> str:
    """A line for a shell; empty if the model's inputs are too large for one. `host`: with its port."""
    url = f"{host}/v2/models/{name}/infer"
    shapes = [_shape(each, metadata.max_batch_size) for each in metadata.inputs]
    small = sum(map(element_count, shapes)) <= ELEMENTS_LIMIT
    if small and not any(each.datatype in _BINARY_ONLY for each in metadata.inputs):
        if metadata.decoupled:
            members = {each.name: _data(each, shape) for each, shape in zip(metadata.inputs, shapes, strict=True)}
            stream = f"{host}/v2/models/{name}/generate_stream"
            return f"curl -N {stream} -d {shlex.quote(json.dumps(members, ensure_ascii=False))}"
        inputs = [_input(each, shape) for each, shape in zip(metadata.inputs, shapes, strict=True)]
        return f"curl {url} -d {shlex.quote(json.dumps({'inputs': inputs}, ensure_ascii=False))}"
    if len(shapes) != 1 or metadata.decoupled:
        return ""
    size = size_bytes(metadata.inputs[0].datatype, shapes[0])
    return f"head -c {size} /dev/zero | curl {url} -H '{_RAW}' --data-binary @- -o answer" if size else ""


def _shape(spec: TensorSpec, max_batch_size: int) -> list[int]:
    return [*([1] if max_batch_size else []), *(1 if each < 0 else each for each in spec.shape)]


def _input(spec: TensorSpec, shape: list[int]) -> dict[str, Any]:  # a JSON object
    return {"name": spec.name, "datatype": spec.datatype, "shape": shape, "data": _data(spec, shape)}


def _data(spec: TensorSpec, shape: list[int]) -> list[Any]:  # JSON
    zero: Any = {"BYTES": "", "BOOL": False}.get(spec.datatype, 0)  # as above
    return [zero] * element_count(shape)
