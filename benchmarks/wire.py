"""Requests and answers as bytes: the Open Inference Protocol in its two dresses, raw floats, plain JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import HTTPConnection

import numpy as np
from work import Array

_JSON_PART = 4096
"""The JSON before binary tensors is never as long as this, with one tensor."""
Json = dict[str, object]


@dataclass(frozen=True)
class RequestBytes:
    """One POST."""

    path: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    def encode(self) -> bytes:
        """All of it, as a client that keeps its connection sends it."""
        lines = [f"POST {self.path} HTTP/1.1", "Host: 127.0.0.1"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        lines += [f"Content-Length: {len(self.body)}", "", ""]
        return "\r\n".join(lines).encode() + self.body

    def ask(self, port: int, timeout_s: float = 30) -> tuple[int, bytes]:
        """Send it once; status and body."""
        connection = HTTPConnection("127.0.0.1", port, timeout=timeout_s)
        try:
            connection.request("POST", self.path, self.body, dict(self.headers))
            reply = connection.getresponse()
            return reply.status, reply.read()
        finally:
            connection.close()


def raw_request(path: str, x: Array) -> RequestBytes:
    """Nothing but the floats."""
    return RequestBytes(path, x.tobytes(), {"Content-Type": "application/octet-stream"})


def raw_answer(body: bytes) -> Array:
    """Nothing but the floats."""
    return np.frombuffer(body, np.float32)


def json_request(path: str, value: object) -> RequestBytes:
    """Any JSON."""
    return RequestBytes(path, json.dumps(value).encode(), {"Content-Type": "application/json"})


def v2_json_request(model: str, x: Array) -> RequestBytes:
    """The Open Inference Protocol, tensors as lists."""
    tensor = {"name": "x", "shape": list(x.shape), "datatype": "FP32", "data": x.ravel().tolist()}
    return json_request(f"/v2/models/{model}/infer", {"inputs": [tensor]})


def v2_json_answer(body: bytes) -> Array:
    """Its reply."""
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
    """Its reply. The head's length stands in a header that a kept sample lacks: JSON knows its own end."""
    head, end = json.JSONDecoder().raw_decode(body[:_JSON_PART].decode("latin-1"))
    size = head["outputs"][0]["parameters"]["binary_data_size"]
    assert len(body) - end >= size, "the tensor is cut off"
    return np.frombuffer(body[len(body) - size :], np.float32)
