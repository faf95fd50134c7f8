"""Requests and answers as bytes: the Open Inference Protocol in JSON and binary, raw floats, plain JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from http.client import HTTPConnection

import numpy as np
from work import Array

_JSON_PART = 4096
"""Upper bound of the JSON head before one binary tensor."""
REQUEST_ID = "bench-0000000000000000"
"""The digits differ in every request that is sent (values.py)."""
Json = dict[str, object]


@dataclass(frozen=True)
class RequestBytes:
    path: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    def encode(self) -> bytes:
        """The whole HTTP request, for a persistent connection."""
        lines = [f"POST {self.path} HTTP/1.1", "Host: 127.0.0.1"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        lines += [f"Content-Length: {len(self.body)}", "", ""]
        return "\r\n".join(lines).encode() + self.body

    def send(self, port: int, timeout_s: float = 30) -> tuple[int, bytes]:
        """Send it once; returns status and body."""
        connection = HTTPConnection("127.0.0.1", port, timeout=timeout_s)
        try:
            connection.request("POST", self.path, self.body, dict(self.headers))
            reply = connection.getresponse()
            return reply.status, reply.read()
        finally:
            connection.close()


def raw_request(path: str, x: Array) -> RequestBytes:
    return RequestBytes(path, x.tobytes(), {"Content-Type": "application/octet-stream"})


def raw_answer(body: bytes) -> Array:
    return np.frombuffer(body, np.float32)


def json_request(path: str, value: object) -> RequestBytes:
    return RequestBytes(path, json.dumps(value).encode(), {"Content-Type": "application/json"})


def v2_json_request(model: str, x: Array) -> RequestBytes:
    """The Open Inference Protocol, tensors as lists."""
    tensor = {"name": "x", "shape": list(x.shape), "datatype": "FP32", "data": x.ravel().tolist()}
    return json_request(_v2_path(model), {"inputs": [tensor]})


def v2_json_answer(body: bytes) -> Array:
    return np.array(json.loads(body)["outputs"][0]["data"], np.float32)


def v2_requests_with_ids(model: str, x: Array) -> list[RequestBytes]:
    """Three ways to name a request: in the JSON head of a binary one, as tritonclient writes it; in JSON; by header."""
    tensor: Json = {"name": "x", "shape": list(x.shape), "datatype": "FP32"}
    inputs = [tensor | {"parameters": {"binary_data_size": x.nbytes}}]
    outputs = [{"name": "y", "parameters": {"binary_data": True}}]
    head = {"id": REQUEST_ID, "inputs": inputs, "outputs": outputs}
    text = json.dumps(head, separators=(",", ":")).encode()
    binary = RequestBytes(_v2_path(model), text + x.tobytes(), {"Inference-Header-Content-Length": str(len(text))})
    as_json = {"id": REQUEST_ID, "inputs": [tensor | {"data": x.ravel().tolist()}]}
    return [binary, json_request(_v2_path(model), as_json), with_header_id(v2_binary_request(model, x))]


def with_header_id(request: RequestBytes) -> RequestBytes:
    """The same with an X-Request-Id."""
    return replace(request, headers={**request.headers, "X-Request-Id": REQUEST_ID})


def json_id(body: bytes) -> str:
    """The id in the JSON of a request or a reply, whether or not tensors follow it; empty without one."""
    try:
        head = json.JSONDecoder().raw_decode(body[: 4 * _JSON_PART].decode("latin-1"))[0]
    except ValueError:
        return ""
    return str(head.get("id", "")) if isinstance(head, dict) else ""


def message_id(message: bytes) -> str:
    """The id in the JSON of a whole HTTP request; empty without one."""
    end = message.find(b"\r\n\r\n") + 4
    return json_id(message[end : end + 4 * _JSON_PART])


def _v2_path(model: str) -> str:
    return f"/v2/models/{model}/infer"


def v2_binary_request(model: str, x: Array) -> RequestBytes:
    """The Open Inference Protocol with the binary extension: JSON, then the bytes of the tensor."""
    parameters: Json = {"binary_data_size": x.nbytes}
    tensor: Json = {"name": "x", "shape": list(x.shape), "datatype": "FP32", "parameters": parameters}
    head = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
    text = json.dumps(head).encode()
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(text))}
    return RequestBytes(_v2_path(model), text + x.tobytes(), headers)


def v2_answer(body: bytes) -> Array:
    """A reply, binary or not. A sample lacks the header with the length of the head: the JSON is read to its end."""
    head, end = json.JSONDecoder().raw_decode(body[:_JSON_PART].decode("latin-1"))
    output = head["outputs"][0]
    if "data" in output:
        return np.array(output["data"], np.float32)
    size = output["parameters"]["binary_data_size"]
    assert len(body) - end >= size, "the tensor is cut off"
    return np.frombuffer(body[len(body) - size :], np.float32)
