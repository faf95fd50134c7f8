"""MLServer: FastAPI, models in a pool of processes."""

from __future__ import annotations

import base64
import json
from typing import ClassVar

import numpy as np
from wire import Json, RequestBytes, json_request, v2_json_answer, v2_json_request
from work import Array, Scene

from drivers.peer import Peer, ServerPlace


class MlServer(Peer):
    """It has no binary extension over HTTP: small tensors go as JSON, large ones as base64 within it."""

    key: ClassVar[str] = "mlserver"
    name: ClassVar[str] = "MLServer"
    package: ClassVar[str] = "mlserver"
    speaks_oip: ClassVar[bool] = True

    def command(self, scene: Scene, place: ServerPlace) -> list[str]:
        """A folder for each model, then `mlserver start`."""
        settings = {"host": "127.0.0.1", "http_port": place.port, "grpc_port": 0, "parallel_workers": 1, "debug": False}
        settings |= {"metrics_endpoint": None, "gzip_enabled": False, "logging_settings": None}
        (place.folder / "settings.json").write_text(json.dumps(settings))
        batch = {"max_batch_size": 16, "max_batch_time": 0.002} if scene.batching else {}
        for name in scene.names:
            (place.folder / name).mkdir()
            model = {"name": name, "implementation": "mlserver_app.Model", **batch}
            (place.folder / name / "model-settings.json").write_text(json.dumps(model))
        return [str(place.bin / "mlserver"), "start", str(place.folder)]

    def request(self, scene: Scene, model: str, x: Array) -> RequestBytes:
        """A list of floats; base64 where it is large."""
        if not scene.is_large:
            return v2_json_request(model, x)
        text = base64.b64encode(x.tobytes()).decode()
        tensor: Json = {"name": "x", "shape": [1], "datatype": "BYTES", "data": [text]}
        tensor["parameters"] = {"content_type": "base64"}
        return json_request(f"/v2/models/{model}/infer", {"inputs": [tensor]})

    def answer(self, scene: Scene, body: bytes) -> Array:
        """The same."""
        if not scene.is_large:
            return v2_json_answer(body)
        return np.frombuffer(base64.b64decode(json.loads(body)["outputs"][0]["data"][0]), np.float32)

    def note(self, scene: Scene) -> str:
        """Where it differs."""
        return "base64" if scene.is_large else "as JSON" if scene.binary else ""
