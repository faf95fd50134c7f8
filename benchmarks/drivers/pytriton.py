"""PyTriton: Triton with models in the Python process that started it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from work import Scene

from drivers.peer import ServerPlace, V2Peer, free_port

PYTHONS = "/usr/bin/python3.13", "/usr/bin/python3.12", "/usr/bin/python3.11", "/usr/bin/python3.10"
"""The stub loads the system's libpython, whose patch level its modules must share."""


class PyTriton(V2Peer):
    """The same server as Triton's, another way to the model."""

    key: ClassVar[str] = "pytriton"
    name: ClassVar[str] = "PyTriton"
    package: ClassVar[str] = "nvidia-pytriton"
    pythons: ClassVar[Sequence[str]] = PYTHONS
    litter: ClassVar[Sequence[str]] = ("folder??????", "python_env_??????")

    def command(self, _scene: Scene, place: ServerPlace) -> list[str]:
        """apps/pytriton_app.py."""
        return place.app("pytriton")

    def environ(self, place: ServerPlace) -> Mapping[str, str]:
        """The port that it cannot do without, and where it may write."""
        return {"GRPC_PORT": str(free_port()), "PYTRITON_HOME": str(place.folder)}
