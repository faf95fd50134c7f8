"""Builds ModelInfer calls of the Open Inference Protocol over gRPC, and parses their replies. Pure.

Source: https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/open_inference_grpc.proto
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Iterable
from typing import Any, Final

from mmsup.ipc.protobuf_wire import fields
from mmsup.supervisor.chaos.clients.http_client import HttpCall, HttpReply
from mmsup.supervisor.chaos.clients.payload import Payload
from mmsup.supervisor.chaos.clients.protocol import CLIENT_ID, FaultCommand, ParsedReply

MODEL_INFER: Final = "/inference.GRPCInferenceService/ModelInfer"
CODE_TRAILER: Final = "mmsup-code"
_NAME, _DATATYPE, _SHAPE = 1, 2, 3
"""Fields of a tensor."""
_MODEL, _ID, _INPUTS, _RAW_INPUTS = 1, 3, 5, 7
_OUTPUTS, _RAW_OUTPUTS = 5, 6


class RpcAdapter:
    """A ProtocolAdapter whose calls are messages for RpcClient. All tensors are raw; half of the calls have an id."""

    def __init__(self, *, has_batch_axis: Callable[[str], bool] = lambda _: False) -> None:
        self._has_batch_axis = has_batch_axis

    def build_request(
        self,
        model: str,
        payload: Payload,
        command: FaultCommand | None,
        parameters: dict[str, Any] | None = None,
    ) -> HttpCall:
        assert not parameters, "only models without sequences are called over gRPC"
        axis = [1] if self._has_batch_axis(model) else []
        tensors = [("x", "FP32", [*axis, len(payload.values)], payload.data)]
        if command is not None:
            mode = command.mode.encode()
            tensors.append(("mode", "BYTES", [*axis, 1], struct.pack("<I", len(mode)) + mode))
            tensors.append(("amount", "FP64", [*axis, 1], struct.pack("<d", command.amount)))
        made = [_field(_MODEL, model.encode())]
        made += [_field(_ID, CLIENT_ID.encode())] if payload.number % 2 else []
        made += [_field(_INPUTS, _tensor(name, datatype, shape)) for name, datatype, shape, _ in tensors]
        made += [_field(_RAW_INPUTS, data) for *_, data in tensors]
        return HttpCall(MODEL_INFER, b"".join(made))

    def parse_reply(self, reply: HttpReply) -> ParsedReply:
        if reply.status:
            return ParsedReply(code=reply.headers[CODE_TRAILER], text=reply.body.decode("utf-8", "replace")[:200])
        try:
            return _parse_outputs(reply.body)
        except (ValueError, KeyError, IndexError) as error:
            return ParsedReply(code="unreadable", text=f"{type(error).__name__}: {error}")


def _parse_outputs(body: bytes) -> ParsedReply:
    data, names, raw = memoryview(body), list[str](), list[bytes]()
    for each in fields(data, 0, len(data)):
        if each.number == _OUTPUTS:
            inner = fields(data, each.start, each.end)
            names += [bytes(data[part.start : part.end]).decode() for part in inner if part.number == _NAME]
        elif each.number == _RAW_OUTPUTS:
            raw.append(bytes(data[each.start : each.end]))
    outputs = dict(zip(names, raw, strict=True))
    revision, pid = array("q", outputs["life"])
    return ParsedReply(outputs["y"], revision=revision, pid=pid)


def _tensor(name: str, datatype: str, shape: Iterable[int]) -> bytes:
    packed = b"".join(_varint(each) for each in shape)
    return _field(_NAME, name.encode()) + _field(_DATATYPE, datatype.encode()) + _field(_SHAPE, packed)


def _field(number: int, data: bytes) -> bytes:
    """A field of bytes, text, a message or packed numbers."""
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    made = bytearray()
    while value > 0x7F:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    made.append(value)
    return bytes(made)
