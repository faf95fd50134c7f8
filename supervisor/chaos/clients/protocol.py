"""How a request to a model is made and its answer read, for servers that speak the Open Inference Protocol.

A `Driver` is all that load, nemesis and checker know of a server's dialect: another server is another driver, with the
same two methods. Pure.
"""

from __future__ import annotations

import json
from array import array
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast
from urllib.parse import quote

from mmsup.supervisor.chaos.clients.http_client import HttpCall, HttpReply
from mmsup.supervisor.chaos.clients.payload import Payload

BINARY_MIN_VALUES: Final = 1024
"""Values from which tensors go as bytes, where the server takes them."""
_LENGTH_HEADER: Final = "Inference-Header-Content-Length"


@dataclass(frozen=True, slots=True)
class FaultCommand:
    """What a fault model is asked to do."""

    mode: str
    amount: float = 0.0


@dataclass(frozen=True, slots=True)
class ParsedReply:
    """What a reply says."""

    data: bytes | None = None
    """The model's output as FP32 bytes; None if it is an error."""
    code: str = ""
    text: str = ""
    pid: int = 0
    revision: int = 0


class ProtocolAdapter(Protocol):
    """A server's dialect."""

    def build_request(self, model: str, payload: Payload, command: FaultCommand | None) -> HttpCall:
        """The request that sends this payload through the model, and makes it do harm."""
        ...

    def parse_reply(self, reply: HttpReply) -> ParsedReply:
        """What came back. Never raises: a reply that cannot be read is an error with the code `unreadable`."""
        ...


class V2Adapter:
    """The Open Inference Protocol over HTTP. `binary`: large tensors go as bytes, by Triton's extension. `rows`: the
    models batch, so every tensor has a leading axis of one."""

    def __init__(self, *, binary: bool = True, rows: bool = False) -> None:
        self._binary = binary
        self._axis = [1] if rows else []

    def build_request(self, model: str, payload: Payload, command: FaultCommand | None) -> HttpCall:
        """An inference request."""
        path = f"/v2/models/{quote(model, safe='')}/infer"
        x: dict[str, Any] = {"name": "x", "datatype": "FP32", "shape": [*self._axis, len(payload.values)]}  # JSON
        request: dict[str, Any] = {"inputs": [x, *self._command_inputs(command)]}  # JSON
        if not self._binary or len(payload.values) < BINARY_MIN_VALUES:
            x["data"] = payload.values.tolist()
            return HttpCall(path, json.dumps(request).encode(), (("Content-Type", "application/json"),))
        x["parameters"] = {"binary_data_size": len(payload.values) * 4}
        request["parameters"] = {"binary_data_output": True}
        head = json.dumps(request).encode()
        headers = (("Content-Type", "application/octet-stream"), (_LENGTH_HEADER, str(len(head))))
        return HttpCall(path, head + payload.data, headers)

    def _command_inputs(self, harm: FaultCommand | None) -> list[dict[str, Any]]:  # JSON
        if harm is None:
            return []
        shape = [*self._axis, 1]
        return [
            {"name": "mode", "datatype": "BYTES", "shape": shape, "data": [harm.mode]},
            {"name": "amount", "datatype": "FP64", "shape": shape, "data": [harm.amount]},
        ]

    def parse_reply(self, reply: HttpReply) -> ParsedReply:
        """The output `y`, or the error."""
        try:
            return _parse_reply(reply)
        except (ValueError, KeyError, TypeError, IndexError, OverflowError) as error:
            return ParsedReply(code="unreadable", text=f"{type(error).__name__}: {error}")


def _parse_reply(reply: HttpReply) -> ParsedReply:
    length = int(reply.headers.get(_LENGTH_HEADER.lower(), len(reply.body)))
    if reply.status != 200:
        return _parse_error(reply)
    said = cast("dict[str, Any]", json.loads(reply.body[:length]))
    outputs: dict[str, bytes | list[Any]] = {}
    at = length
    for each in said["outputs"]:
        size = each.get("parameters", {}).get("binary_data_size")
        outputs[each["name"]] = each["data"] if size is None else reply.body[at : at + size]
        at += size or 0
    y, life = outputs["y"], _integers(outputs.get("life", [0, 0]))
    return ParsedReply(y if isinstance(y, bytes) else array("f", y).tobytes(), revision=life[0], pid=life[1])


def _integers(data: bytes | list[Any]) -> list[int]:
    return array("q", data).tolist() if isinstance(data, bytes) else [int(each) for each in data]


def _parse_error(reply: HttpReply) -> ParsedReply:
    code, text = f"http_{reply.status}", ""
    try:
        said = json.loads(reply.body)
    except ValueError:
        return ParsedReply(code=code, text=reply.body[:200].decode("utf-8", "replace"))
    if isinstance(said, dict):
        told = cast("dict[str, Any]", said)
        text = str(told.get("error", ""))
        code = str(told.get("code") or code)
    return ParsedReply(code=code, text=text[:200])
