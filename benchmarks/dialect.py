"""How chaos speaks to a server that is compared: its driver's requests, with the harm in the values themselves."""

from __future__ import annotations

import runpy

import numpy as np
from drivers.peer import Peer
from places import HERE
from work import Array, Scene

from mmsup.supervisor.chaos.clients.http_client import Call, Reply
from mmsup.supervisor.chaos.clients.payload import Payload
from mmsup.supervisor.chaos.clients.protocol import Answer, Harm

_MODELS = runpy.run_path(str(HERE / "apps" / "arithmetic.py"))
"""What the servers run."""
HARMS = list(_MODELS["HARMS"])
"""Everything that the model can be made to do, by name."""


class Dialect:
    """A `Driver` of chaos's. No server says which process answered."""

    def __init__(self, peer: Peer, scene: Scene) -> None:
        self._peer = peer
        self._scene = scene

    def call(self, model: str, payload: Payload, harm: Harm | None) -> Call:
        """The request that sends this payload through the model, and makes it do harm."""
        request = self._peer.request(self._scene, model, values(payload, harm))
        return Call(request.path, request.body, tuple(request.headers.items()))

    def answer(self, reply: Reply) -> Answer:
        """What came back."""
        if reply.status != 200:
            return Answer(code=f"http_{reply.status}", text=reply.body[:200].decode("utf-8", "replace"))
        try:
            return Answer(self._peer.answer(self._scene, reply.body).astype("<f4").tobytes())
        except (ValueError, TypeError, LookupError, AssertionError) as error:
            return Answer(code="unreadable", text=f"{type(error).__name__}: {error}")


def values(payload: Payload, harm: Harm | None) -> Array:
    """What goes over the wire."""
    x = np.array(payload.values, np.float32)
    if harm is not None:
        x[0], x[1] = _MODELS["FIRST_HARM"] + HARMS.index(harm.mode), harm.amount
    return x
