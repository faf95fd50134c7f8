"""Interface of a compared server: the command that starts it, its inference requests and its replies."""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from wire import (
    RequestBytes,
    v2_answer,
    v2_binary_request,
    v2_json_answer,
    v2_json_request,
    v2_requests_with_ids,
    with_header_id,
)
from work import MAX_BATCH, MAX_DELAY_S, MLP_OUTPUTS, Array, Scene


@dataclass(frozen=True)
class ServerPlace:
    """Files and port of one start: a server writes only into `folder`."""

    folder: Path
    port: int
    bin: Path
    """The programs of the peer's environment."""
    apps: Path
    network: Path
    """The ONNX file of the batching scene."""
    metrics_port: int = 0
    """For a server that counts what the report shows."""

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
    """A port that is free now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Peer(ABC):
    """One server. Every setting is the one its documentation recommends for speed with one process for the model."""

    key: ClassVar[str]
    name: ClassVar[str]
    package: ClassVar[str]
    """The package whose version is reported."""
    requires: ClassVar[str] = ""
    """NAME of apps/NAME.txt, which lists what to install; by default the key."""
    pythons: ClassVar[Sequence[str]] = ()
    """Interpreters preferred to the one that runs the benchmarks."""
    program: ClassVar[str] = ""
    """A program that must be installed on the machine."""
    speaks_oip: ClassVar[bool] = False
    """Whether its JSON is the Open Inference Protocol's."""
    leftover_patterns: ClassVar[Sequence[str]] = ()
    """Names of the folders that it leaves in /tmp, whatever TMPDIR says."""
    warm_s: ClassVar[float] = 0
    """Minimum warm-up under load."""
    start_s: ClassVar[float] = 90

    @abstractmethod
    def command(self, scene: Scene, place: ServerPlace) -> list[str]:
        """Write the server's files; returns the command that serves in the foreground."""

    @abstractmethod
    def request(self, scene: Scene, model: str, x: Array) -> RequestBytes:
        """An inference request."""

    def requests(self, scene: Scene, model: str, x: Array) -> list[RequestBytes]:
        """The requests that ask a model for one input: more than one if the scene mixes ways to name them."""
        request = self.request(scene, model, x)
        return [with_header_id(request)] if scene.with_ids else [request]

    @abstractmethod
    def answer(self, scene: Scene, body: bytes) -> Array:
        """The tensor of a reply."""

    def environ(self, _place: ServerPlace) -> Mapping[str, str]:
        """Environment variables besides those that settings.py reads."""
        return {}

    def note(self, scene: Scene) -> str:
        """How its requests deviate from the scene, if they do."""
        return "ids by header only" if scene.with_ids else ""

    def is_settled(self, _place: ServerPlace) -> bool:
        """Whether all processes of a server that serves have come up."""
        return True

    def known_requests(self, _place: ServerPlace) -> float | None:
        """How many requests the server has recognised by their bytes; None if it does not count that."""
        return None


class V2Peer(Peer):
    """A server that speaks the Open Inference Protocol with the binary extension."""

    speaks_oip: ClassVar[bool] = True

    def request(self, scene: Scene, model: str, x: Array) -> RequestBytes:
        """As JSON or as bytes, as the scene says."""
        return v2_binary_request(model, x) if scene.binary else v2_json_request(model, x)

    def answer(self, scene: Scene, body: bytes) -> Array:
        return v2_answer(body) if scene.binary else v2_json_answer(body)

    def requests(self, scene: Scene, model: str, x: Array) -> list[RequestBytes]:
        return v2_requests_with_ids(model, x) if scene.with_ids else super().requests(scene, model, x)

    def note(self, _scene: Scene) -> str:
        return ""


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
