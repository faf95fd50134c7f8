"""Mosec: a Rust front, Python workers behind UNIX sockets."""

from __future__ import annotations

import json
from typing import ClassVar

import numpy as np
from wire import RequestBytes, json_request, raw_answer, raw_request
from work import Array, Scene

from drivers.peer import Peer, ServerPlace


class Mosec(Peer):
    """Raw bytes in and out: the leanest that it offers."""

    key: ClassVar[str] = "mosec"
    name: ClassVar[str] = "Mosec"
    package: ClassVar[str] = "mosec"

    def command(self, scene: Scene, place: ServerPlace) -> list[str]:
        """apps/mosec_app.py, one route for each model."""
        words = [*place.app("mosec"), "--address=127.0.0.1", f"--port={place.port}", "--log-level=error"]
        return [
            *words,
            f"--path={place.folder / 'mosec'}",
            f"--max-request-size={64 << 20}",
            f"--timeout={scene.limit_s * 1000:.0f}",
        ]

    def request(self, scene: Scene, model: str, x: Array) -> RequestBytes:
        """Floats, or a JSON list."""
        return raw_request(f"/{model}", x) if scene.binary else json_request(f"/{model}", x.tolist())

    def answer(self, scene: Scene, body: bytes) -> Array:
        """The same."""
        return raw_answer(body) if scene.binary else np.array(json.loads(body), np.float32)
