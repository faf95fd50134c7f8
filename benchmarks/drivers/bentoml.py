"""BentoML: Starlette, models in the process that serves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from wire import RequestBytes, json_request, raw_answer
from work import Array, Scene

from drivers.peer import Peer, ServerPlace

BOUNDARY = "mmsup-bench-boundary"


class BentoMl(Peer):
    """Arrays as JSON, which is all that it takes from strangers; large ones as an uploaded file."""

    key: ClassVar[str] = "bentoml"
    name: ClassVar[str] = "BentoML"
    package: ClassVar[str] = "bentoml"

    def command(self, _scene: Scene, place: ServerPlace) -> list[str]:
        """`bentoml serve`, on apps/bentoml_app.py."""
        words = [str(place.bin / "bentoml"), "serve", "bentoml_app:Models", f"--working-dir={place.apps}"]
        return [*words, "--host=127.0.0.1", f"--port={place.port}", "--quiet"]

    def environ(self, place: ServerPlace) -> Mapping[str, str]:
        """Where it may write, and to tell nobody."""
        return {"BENTOML_HOME": str(place.folder / "bentoml"), "BENTOML_DO_NOT_TRACK": "1"}

    def request(self, scene: Scene, model: str, x: Array) -> RequestBytes:
        """JSON, or a form with a file."""
        if not scene.is_large:
            return json_request(f"/{model}", {"x": x.tolist()})
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="x"; filename="x"\r\n\r\n'
        body = head.encode() + x.tobytes() + f"\r\n--{BOUNDARY}--\r\n".encode()
        return RequestBytes(f"/{model}", body, {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"})

    def answer(self, scene: Scene, body: bytes) -> Array:
        """JSON, or bytes."""
        return raw_answer(body) if scene.is_large else np.array(json.loads(body), np.float32)

    def note(self, scene: Scene) -> str:
        """Where it differs."""
        return "as a file" if scene.is_large else "as JSON" if scene.binary else ""
