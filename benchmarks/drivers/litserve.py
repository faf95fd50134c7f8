"""LitServe: FastAPI, workers behind queues."""

from __future__ import annotations

import json
from typing import ClassVar

import numpy as np
from wire import RequestBytes, json_request, raw_answer, raw_request
from work import Array, Scene

from drivers.peer import Peer, ServerPlace


class LitServe(Peer):
    """Raw bytes in and out, where the scene is binary."""

    key: ClassVar[str] = "litserve"
    name: ClassVar[str] = "LitServe"
    package: ClassVar[str] = "litserve"

    def command(self, _scene: Scene, place: ServerPlace) -> list[str]:
        """apps/litserve_app.py."""
        return place.app("litserve")

    def request(self, scene: Scene, model: str, x: Array) -> RequestBytes:
        """Floats, or JSON."""
        return raw_request(f"/{model}", x) if scene.binary else json_request(f"/{model}", {"x": x.tolist()})

    def answer(self, scene: Scene, body: bytes) -> Array:
        """The same."""
        return raw_answer(body) if scene.binary else np.array(json.loads(body)["y"], np.float32)
