"""Lets `mmsup chaos` test any compared server: faults are triggered by the values of ordinary requests."""

from __future__ import annotations

import runpy
from typing import Any

import numpy as np
from drivers.peer import Peer
from places import HERE
from work import Array, Scene

from mmsup.supervisor.chaos.clients.http_client import HttpCall, HttpReply
from mmsup.supervisor.chaos.clients.payload import Payload
from mmsup.supervisor.chaos.clients.protocol import FaultCommand, ParsedReply

_MODELS = runpy.run_path(str(HERE / "apps" / "arithmetic.py"))
"""The models that the servers run."""
HARMS = list(_MODELS["FAULTS"])
"""Names of the faults that the model can have."""


class PeerAdapter:
    """The ProtocolAdapter of a compared server. Its replies do not name the worker."""

    def __init__(self, peer: Peer, scene: Scene) -> None:
        self._peer = peer
        self._scene = scene

    def build_request(
        self, model: str, payload: Payload, command: FaultCommand | None, parameters: dict[str, Any] | None = None
    ) -> HttpCall:
        assert not parameters, "no model of a peer has sequences"
        request = self._peer.request(self._scene, model, payload_values(payload, command))
        return HttpCall(request.path, request.body, tuple(request.headers.items()))

    def parse_reply(self, reply: HttpReply) -> ParsedReply:
        if reply.status != 200:
            return ParsedReply(code=f"http_{reply.status}", text=reply.body[:200].decode("utf-8", "replace"))
        try:
            return ParsedReply(self._peer.answer(self._scene, reply.body).astype("<f4").tobytes())
        except (ValueError, TypeError, LookupError, AssertionError) as error:
            return ParsedReply(code="unreadable", text=f"{type(error).__name__}: {error}")


def payload_values(payload: Payload, command: FaultCommand | None) -> Array:
    """The input: the payload, with the fault in its first two values."""
    x = np.array(payload.values, np.float32)
    if command is not None:
        x[0], x[1] = _MODELS["FIRST_FAULT"] + HARMS.index(command.mode), command.amount
    return x
