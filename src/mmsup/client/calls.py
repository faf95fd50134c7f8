"""Each call as an HTTP request, and how its answer is read. Pure; both clients use it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Generic, TypeVar
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from mmsup.client import replies, tensors
from mmsup.client.http_message import ResponseHead
from mmsup.client.replies import HttpReply, InferResult, ModelMetadata, ModelState, ServerMetadata
from mmsup.client.shared_memory import SharedMemory
from mmsup.client.tensors import Array

T = TypeVar("T")
Json = dict[str, Any]  # a JSON object
Buffer = bytes | memoryview
OK: Final = 200
_JSON: Final = {"Content-Type": "application/json"}


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """`read` makes the result of an answer with status 200; `refused`, if it is set, that of any other."""

    method: str
    path: str
    read: Callable[[HttpReply], T]
    body: Sequence[Buffer] = ()
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    model: str = ""
    refused: Callable[[ResponseHead], T] | None = None

    def result(self, reply: HttpReply) -> T:
        """ServerRefused for an answer that is none of success."""
        if reply.head.status == OK:
            return self.read(reply)
        if self.refused is not None:
            return self.refused(reply.head)
        raise replies.refusal(reply.head, bytes(reply.body), self.model)


@dataclass(frozen=True, slots=True)
class InferOptions:
    """What an inference may have beside its inputs. `timeout_s`: how long the server may take."""

    version: str = ""
    outputs: Sequence[str] | None = None
    into: Mapping[str, Array] = field(default_factory=dict[str, Array])
    id: str = ""
    priority: int = 0
    parameters: Mapping[str, bool | int | float | str] = field(default_factory=dict[str, bool | int | float | str])
    timeout_s: float = 0.0

    def request_parameters(self) -> Json:
        made: Json = dict(self.parameters)
        if self.priority:
            made["priority"] = self.priority
        if self.timeout_s:
            made["timeout"] = max(1, int(self.timeout_s * 1e6))
        return made


def infer(
    model: str, inputs: Mapping[str, npt.ArrayLike], options: InferOptions, memories: Iterable[SharedMemory]
) -> Call[InferResult]:
    """ValueError for arrays that cannot be sent, and for an `into` that is in none of `memories`."""
    if isinstance(options.outputs, str):
        raise ValueError(f"outputs is a list of names: [{options.outputs!r}]")
    known = list(memories)
    blobs: list[Buffer] = []
    shown: list[Json] = []
    for name, given in inputs.items():
        array = np.asarray(given)
        place = _place(array, known)
        if place is None:
            blob = tensors.to_bytes(array)
            blobs.append(blob)
            place = {"binary_data_size": len(blob)}
        shown.append(
            {"name": name, "shape": list(array.shape), "datatype": tensors.datatype_of(array), "parameters": place}
        )
    document: Json = {"inputs": shown, "parameters": {**options.request_parameters(), "binary_data_output": True}}
    names = list(options.outputs) if options.outputs is not None else list(options.into)
    if names or options.into:
        document["outputs"] = [_output(name, options.into, known) for name in dict.fromkeys([*names, *options.into])]
    if options.id:
        document = {"id": options.id, **document}
    head = json.dumps(document, separators=(",", ":")).encode()
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    read = partial(replies.read_result, into=options.into)
    return Call("POST", f"{model_path(model, options.version)}/infer", read, [head, *blobs], headers, model)


def _place(array: Array, memories: Sequence[SharedMemory]) -> Json | None:
    """The parameters that say where an array lies in shared memory; None if it does not."""
    for memory in memories:
        offset = memory.offset_of(array)
        if offset is not None:
            shift = {"shared_memory_offset": offset} if offset else {}
            return {"shared_memory_region": memory.name, **shift, "shared_memory_byte_size": array.nbytes}
    return None


def _output(name: str, into: Mapping[str, Array], memories: Sequence[SharedMemory]) -> Json:
    array = into.get(name)
    if array is None:
        return {"name": name}
    place = _place(array, memories)
    if place is None:
        raise ValueError(f"the array for output {name!r} is not in memory that this client shares")
    return {"name": name, "parameters": place}


def stream(
    model: str, inputs: Mapping[str, npt.ArrayLike], options: InferOptions
) -> tuple[str, list[Buffer], dict[str, str]]:
    """Path, body and headers of a request whose responses come one by one."""
    document: Json = {name: tensors.to_json(np.asarray(each)) for name, each in inputs.items()}
    document |= {"parameters": options.request_parameters()} if options.request_parameters() else {}
    document |= {"id": options.id} if options.id else {}
    headers = {**_JSON, "Accept": "text/event-stream"}
    return f"{model_path(model, options.version)}/generate_stream", [json.dumps(document).encode()], headers


def is_live() -> Call[bool]:
    return Call("GET", "/v2/health/live", _yes, refused=_no)


def is_ready(model: str, version: str) -> Call[bool]:
    path = f"{model_path(model, version)}/ready" if model else "/v2/health/ready"
    return Call("GET", path, _yes, refused=_no)


def server_metadata() -> Call[ServerMetadata]:
    return Call("GET", "/v2", replies.read_server)


def model_metadata(model: str, version: str) -> Call[ModelMetadata]:
    return Call("GET", model_path(model, version), replies.read_model, model=model)


def document(path: str, model: str = "") -> Call[Any]:  # any JSON value
    return Call("GET", f"/{path.removeprefix('/')}", HttpReply.json, model=model)


def index(*, ready: bool) -> Call[list[ModelState]]:
    return Call("POST", "/v2/repository/index", replies.read_index, [json.dumps({"ready": ready}).encode()], _JSON)


def load(model: str, parameters: Mapping[str, Any]) -> Call[None]:  # JSON scalars
    return _change(f"/v2/repository/models/{quote(model, safe='')}/load", parameters, model)


def unload(model: str, parameters: Mapping[str, Any]) -> Call[None]:  # as above
    return _change(f"/v2/repository/models/{quote(model, safe='')}/unload", parameters, model)


def _change(path: str, parameters: Mapping[str, Any], model: str) -> Call[None]:  # as above
    body = json.dumps({"parameters": dict(parameters)} if parameters else {}).encode()
    return Call("POST", path, _nothing, [body], _JSON, model)


def register(memory: SharedMemory) -> Call[None]:
    body = json.dumps({"key": memory.key, "offset": 0, "byte_size": memory.size}).encode()
    return Call("POST", f"/v2/systemsharedmemory/region/{memory.name}/register", _nothing, [body], _JSON)


def unregister(memory: SharedMemory) -> Call[None]:
    return Call("POST", f"/v2/systemsharedmemory/region/{memory.name}/unregister", _nothing, refused=_nothing)


def model_path(model: str, version: str) -> str:
    base = f"/v2/models/{quote(model, safe='')}"
    return f"{base}/versions/{quote(str(version), safe='')}" if version else base


def _yes(_: HttpReply) -> bool:
    return True


def _no(_: ResponseHead) -> bool:
    return False


def _nothing(_: object) -> None:
    return None
