"""Builds inference requests and parses their replies, for the Open Inference Protocol. Pure.

Servers with another protocol need another ProtocolAdapter: nothing else in this package depends on the protocol.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast
from urllib.parse import quote

from mmsup.supervisor.chaos.clients.http_client import HttpCall, HttpReply
from mmsup.supervisor.chaos.clients.payload import Payload
from mmsup.supervisor.chaos.plan.fault_model import NO_FAULT

BINARY_MIN_VALUES: Final = 1024
"""Tensors with so many values go as binary data, if the server has that extension."""
CLIENT_ID: Final = "chaos"
"""The `id` of the requests that have one."""
_LENGTH_HEADER: Final = "Inference-Header-Content-Length"


@dataclass(frozen=True, slots=True)
class FaultCommand:
    """The fault model's inputs `mode` and `amount`."""

    mode: str
    amount: float = 0.0


@dataclass(frozen=True, slots=True)
class ParsedReply:
    data: bytes | None = None
    """The output `y` as FP32 bytes; None for an error."""
    code: str = ""
    text: str = ""
    pid: int = 0
    revision: int = 0
    runs: int = 0


class ProtocolAdapter(Protocol):
    def build_request(
        self, model: str, payload: Payload, command: FaultCommand | None, parameters: dict[str, Any] | None = None
    ) -> HttpCall:
        """The request that sends a payload through the model, with a command if it is to fail. `parameters`: of the
        request, if it has any."""
        ...

    def parse_reply(self, reply: HttpReply) -> ParsedReply:
        """Parse a reply. Never raises: an invalid one is an error with the code `unreadable`."""
        ...


class V2Adapter:
    """The Open Inference Protocol over HTTP. `binary`: use Triton's binary tensor extension, for large tensors and half
    of the small ones. `has_batch_axis`: whether the tensors of a model have a leading axis, here of length 1;
    `is_streamed`: whether it answers in parts, which together are its answer; `is_ensemble`: whether its requests need
    all inputs.

    Half of the requests have an id, the same for all. So they are of a few kinds, and differ in their values alone.
    """

    def __init__(
        self,
        *,
        binary: bool = True,
        has_batch_axis: Callable[[str], bool] = lambda _: False,
        is_streamed: Callable[[str], bool] = lambda _: False,
        is_ensemble: Callable[[str], bool] = lambda _: False,
    ) -> None:
        self._binary = binary
        self._has_batch_axis = has_batch_axis
        self._is_streamed = is_streamed
        self._is_ensemble = is_ensemble

    def build_request(
        self, model: str, payload: Payload, command: FaultCommand | None, parameters: dict[str, Any] | None = None
    ) -> HttpCall:
        if self._is_streamed(model):
            return _generate_call(model, payload, command)
        if command is None and self._is_ensemble(model):
            command = FaultCommand(NO_FAULT)
        path = f"/v2/models/{quote(model, safe='')}/infer"
        axis = [1] if self._has_batch_axis(model) else []
        x: dict[str, Any] = {"name": "x", "datatype": "FP32", "shape": [*axis, len(payload.values)]}  # JSON
        request: dict[str, Any] = {"id": CLIENT_ID} if payload.number % 2 else {}  # JSON
        request["inputs"] = [x, *self._command_inputs(command, axis)]
        if parameters:
            request["parameters"] = parameters
        is_large = len(payload.values) >= BINARY_MIN_VALUES
        if not self._binary or not (is_large or payload.number % 4 > 1):
            x["data"] = payload.values.tolist()
            return HttpCall(path, json.dumps(request).encode(), (("Content-Type", "application/json"),))
        x["parameters"] = {"binary_data_size": len(payload.values) * 4}
        request["parameters"] = {**(parameters or {}), "binary_data_output": True}
        head = json.dumps(request).encode()
        headers = (("Content-Type", "application/octet-stream"), (_LENGTH_HEADER, str(len(head))))
        return HttpCall(path, head + payload.data, headers)

    def _command_inputs(self, command: FaultCommand | None, axis: list[int]) -> list[dict[str, Any]]:  # JSON
        if command is None:
            return []
        shape = [*axis, 1]
        return [
            {"name": "mode", "datatype": "BYTES", "shape": shape, "data": [command.mode]},
            {"name": "amount", "datatype": "FP64", "shape": shape, "data": [command.amount]},
        ]

    def parse_reply(self, reply: HttpReply) -> ParsedReply:
        try:
            return _parse_reply(reply)
        except (ValueError, KeyError, TypeError, IndexError, OverflowError) as error:
            return ParsedReply(code="unreadable", text=f"{type(error).__name__}: {error}")


def _generate_call(model: str, payload: Payload, command: FaultCommand | None) -> HttpCall:
    """A request whose answer comes in parts."""
    document: dict[str, Any] = {"x": payload.values.tolist()}  # JSON
    if command is not None:
        document |= {"mode": command.mode, "amount": command.amount}
    path = f"/v2/models/{quote(model, safe='')}/generate_stream"
    return HttpCall(path, json.dumps(document).encode(), (("Content-Type", "application/json"),))


def _parse_events(body: bytes) -> ParsedReply:
    """One answer of all parts; or the error that is the last event. ValueError if anything follows an error."""
    *events, rest = body.decode().split("\n\n")
    if rest or not all(each.startswith("data: ") for each in events):
        raise ValueError("an event is cut off, or is none")
    parts: list[dict[str, Any]] = [json.loads(each.removeprefix("data: ")) for each in events]  # JSON
    errors = [each for each in parts if "error" in each]
    if errors:
        if errors != parts[-1:]:
            raise ValueError("an error is not the last event")
        return ParsedReply(code=str(errors[0].get("code")), text=str(errors[0]["error"])[:200])
    if not parts:
        raise ValueError("a stream without parts")
    values = [value for each in parts for value in (each["y"] if isinstance(each["y"], list) else [each["y"]])]
    life = _integers(parts[-1].get("life", [0, 0]))
    return ParsedReply(array("f", values).tobytes(), revision=life[0], pid=life[1])


def _parse_reply(reply: HttpReply) -> ParsedReply:
    if reply.status == 200 and reply.headers.get("content-type", "").startswith("text/event-stream"):
        return _parse_events(reply.body)
    length = int(reply.headers.get(_LENGTH_HEADER.lower(), len(reply.body)))
    if reply.status != 200:
        return _parse_error(reply)
    head = cast("dict[str, Any]", json.loads(reply.body[:length]))
    outputs: dict[str, bytes | list[Any]] = {}
    at = length
    for each in head["outputs"]:
        size = each.get("parameters", {}).get("binary_data_size")
        outputs[each["name"]] = each["data"] if size is None else reply.body[at : at + size]
        at += size or 0
    y, life = outputs["y"], _integers(outputs.get("life", [0, 0]))
    runs = _integers(outputs.get("runs", [0]))[0]
    return ParsedReply(y if isinstance(y, bytes) else array("f", y).tobytes(), revision=life[0], pid=life[1], runs=runs)


def _integers(data: bytes | list[Any]) -> list[int]:
    return array("q", data).tolist() if isinstance(data, bytes) else [int(each) for each in data]


def _parse_error(reply: HttpReply) -> ParsedReply:
    code, text = f"http_{reply.status}", ""
    try:
        body = json.loads(reply.body)
    except ValueError:
        return ParsedReply(code=code, text=reply.body[:200].decode("utf-8", "replace"))
    if isinstance(body, dict):
        fields = cast("dict[str, Any]", body)
        text = str(fields.get("error", ""))
        code = str(fields.get("code") or code)
    return ParsedReply(code=code, text=text[:200])
