"""Ray Serve: an HTTP proxy, replicas as actors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from wire import RequestBytes, json_request, raw_answer, raw_request
from work import Array, Scene

from drivers.peer import Peer, ServerPlace


class RayServe(Peer):
    """One application for each model, one replica each."""

    key: ClassVar[str] = "rayserve"
    name: ClassVar[str] = "Ray Serve"
    package: ClassVar[str] = "ray"
    start_s: ClassVar[float] = 180

    def command(self, _scene: Scene, place: ServerPlace) -> list[str]:
        """apps/rayserve_app.py."""
        return place.app("rayserve")

    def environ(self, place: ServerPlace) -> Mapping[str, str]:
        """What its documentation names for throughput: without HAProxy before the replicas it was a tenth as fast.

        The replicas then listen on all interfaces, whatever it is told.
        """
        paths = {"CONFIG_FILE_LOC": "haproxy.cfg", "SERVER_STATE_BASE": "", "SERVER_STATE_FILE": "server-state"}
        paths |= {"SOCKET_PATH": "admin", "METRICS_SOCKET_PATH": "metrics"}  # it adds 57 characters, and 97 are allowed
        options = dict.fromkeys(("THROUGHPUT_OPTIMIZED", "USE_GRPC_BY_DEFAULT", "ENABLE_HA_PROXY"), "1")
        options |= {f"HAPROXY_{name}": str(place.folder / file) for name, file in paths.items()}
        options |= {"HAPROXY_NBTHREAD": "1"}
        return {f"RAY_SERVE_{name}": value for name, value in options.items()}

    def request(self, scene: Scene, model: str, x: Array) -> RequestBytes:
        """Floats, or a JSON list."""
        return raw_request(f"/{model}", x) if scene.binary else json_request(f"/{model}", x.tolist())

    def answer(self, scene: Scene, body: bytes) -> Array:
        """The same."""
        return raw_answer(body) if scene.binary else np.array(json.loads(body), np.float32)
