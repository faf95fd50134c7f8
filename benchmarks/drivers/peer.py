"""What the harness needs to know of a server: how it is started, how it is asked, how its answers read."""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from wire import (
    RequestBytes,
    v2_binary_answer,
    v2_binary_request,
    v2_json_answer,
    v2_json_request,
)
from work import MAX_BATCH, MAX_DELAY_S, MLP_OUTPUTS, Array, Scene


@dataclass(frozen=True)
class ServerPlace:
    """Where one start happens: everything a server writes belongs into the folder."""

    folder: Path
    port: int
    bin: Path
    """The programs of the peer's environment."""
    apps: Path
    network: Path
    """The ONNX file of the batching scene."""

    @property
    def python(self) -> str:
        """The interpreter of the peer's environment."""
        return str(self.bin / "python")

    @property
    def packages(self) -> Path:
        """Where the environment keeps what is installed."""
        return next((self.bin.parent / "lib").glob("python3.*")) / "site-packages"

    def app(self, peer: str) -> list[str]:
        """The command that runs apps/PEER_app.py."""
        return [self.python, str(self.apps / f"{peer}_app.py")]


def free_port() -> int:
    """A port that nobody has now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Peer(ABC):
    """One server. Every setting is the one its documentation recommends for speed with one process for the model."""

    key: ClassVar[str]
    name: ClassVar[str]
    package: ClassVar[str]
    """Whose version is printed."""
    requires: ClassVar[str] = ""
    """Whose apps/NAME.txt says what to install; empty if that is the key."""
    pythons: ClassVar[Sequence[str]] = ()
    """Interpreters to prefer to the one that runs this."""
    program: ClassVar[str] = ""
    """What must be on the machine besides the environment."""
    speaks_oip: ClassVar[bool] = False
    """Whether its JSON is the Open Inference Protocol's."""
    leftover_patterns: ClassVar[Sequence[str]] = ()
    """Names of the folders that it leaves in /tmp, whatever TMPDIR says."""
    warm_s: ClassVar[float] = 0
    """The least that it needs to warm up under a load."""
    start_s: ClassVar[float] = 90

    @abstractmethod
    def command(self, scene: Scene, place: ServerPlace) -> list[str]:
        """Write what it needs into the folder; the command that serves in the foreground."""

    @abstractmethod
    def request(self, scene: Scene, model: str, x: Array) -> RequestBytes:
        """One inference."""

    @abstractmethod
    def answer(self, scene: Scene, body: bytes) -> Array:
        """The tensor of a reply."""

    def environ(self, _place: ServerPlace) -> Mapping[str, str]:
        """What it wants in the environment besides what asked.py reads."""
        return {}

    def note(self, _scene: Scene) -> str:
        """Where the way it is asked is not the usual one of the scene."""
        return ""


class V2Peer(Peer):
    """A server that speaks the Open Inference Protocol with the binary extension."""

    speaks_oip: ClassVar[bool] = True

    def request(self, scene: Scene, model: str, x: Array) -> RequestBytes:
        """As JSON or as bytes, as the scene says."""
        return v2_binary_request(model, x) if scene.binary else v2_json_request(model, x)

    def answer(self, scene: Scene, body: bytes) -> Array:
        """As it was asked."""
        return v2_binary_answer(body) if scene.binary else v2_json_answer(body)


def pbtxt(scene: Scene, model: str, *lines: str) -> str:
    """A model's config.pbtxt, as Triton and mmsup read it."""
    ends = "\n".join(lines)
    dims = list(scene.shape[1:] if scene.batching else scene.shape)
    out = {"mean": [1], "mlp": [MLP_OUTPUTS]}.get(scene.model, dims)
    return f"""\
name: "{model}"
{ends}
max_batch_size: {MAX_BATCH * scene.batching}
input [{{ name: "x" data_type: TYPE_FP32 dims: {dims} }}]
output [{{ name: "y" data_type: TYPE_FP32 dims: {out} }}]
{f"dynamic_batching {{ max_queue_delay_microseconds: {MAX_DELAY_S * 1e6:.0f} }}" if scene.batching else ""}
instance_group [{{ count: 1 kind: KIND_CPU }}]
"""
