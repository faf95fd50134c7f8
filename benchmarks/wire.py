"""Requests and answers as bytes: the Open Inference Protocol in JSON and binary, raw floats, plain JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import HTTPConnection

import numpy as np
from work import Array

_JSON_PART = 4096
"""Upper bound of the JSON head before one binary tensor."""
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
    return json_request(f"/v2/models/{model}/infer", {"inputs": [tensor]})


def v2_json_answer(body: bytes) -> Array:
    return np.array(json.loads(body)["outputs"][0]["data"], np.float32)


def v2_binary_request(model: str, x: Array) -> RequestBytes:
    """The Open Inference Protocol with the binary extension: JSON, then the bytes of the tensor."""
    parameters: Json = {"binary_data_size": x.nbytes}
    tensor: Json = {"name": "x", "shape": list(x.shape), "datatype": "FP32", "parameters": parameters}
    head = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
    text = json.dumps(head).encode()
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(text))}
    return RequestBytes(f"/v2/models/{model}/infer", text + x.tobytes(), headers)


def v2_binary_answer(body: bytes) -> Array:
    """Its reply. A sample lacks the header with the length of the head, so its end is found by parsing the JSON."""
    head, end = json.JSONDecoder().raw_decode(body[:_JSON_PART].decode("latin-1"))
    size = head["outputs"][0]["parameters"]["binary_data_size"]
    assert len(body) - end >= size, "the tensor is cut off"
    return np.frombuffer(body[len(body) - size :], np.float32)
