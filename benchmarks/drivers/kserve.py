"""KServe's own server: FastAPI, models in the one process."""

from __future__ import annotations

from typing import ClassVar

from work import Scene

from drivers.peer import ServerPlace, V2Peer


class KServe(V2Peer):
    """It does not batch: that is the business of a sidecar in its cluster."""

    key: ClassVar[str] = "kserve"
    name: ClassVar[str] = "KServe"
    package: ClassVar[str] = "kserve"

    def command(self, _scene: Scene, place: ServerPlace) -> list[str]:
        """apps/kserve_app.py."""
        words = [*place.app("kserve"), f"--http_port={place.port}", "--enable_grpc=False"]
        return [*words, "--enable_latency_logging=False", "--workers=1"]

    def note(self, scene: Scene) -> str:
        """Where it differs."""
        return "no batching" if scene.batching else ""
