"""The workloads, the same for every server.

A *scene* is one start of a server: model, number of models, encoding of tensors. A *load level* is one load on it.
The models themselves are in apps/arithmetic.py, which the servers import.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

IMAGE = (3, 1024, 1024)
"""12.6 MB of 32-bit floats: a large image, or a batch of twenty small ones."""
MLP_INPUTS = 256
MLP_OUTPUTS = 16
MAX_BATCH = 16
MAX_DELAY_S = 0.002
SOME_CONNECTIONS = 16
"""An axis of any length."""


@dataclass(frozen=True)
class LoadLevel:
    """One load on a running server."""

    key: str
    title: str
    connections: int
    client: str = ""
    """A client library (client.py); else the load generator."""


@dataclass(frozen=True)
class Scene:
    """One start of a server, and the loads on it."""

    key: str
    model: str
    """Its name in apps/arithmetic.py."""
    shape: tuple[int, ...]
    """-1: any length."""
    runs: tuple[LoadLevel, ...]
    binary: bool = True
    models: int = 1
    batching: bool = False
    with_ids: bool = False
    """Requests carry ids, another in each."""
    limit_s: float = 30.0
    """Inference time after which the server counts as hung, for servers with such a limit."""
    variants: int = 8
    """Number of different inputs; as JSON they differ in length. Every request changes their values (values.py)."""

    @property
    def names(self) -> list[str]:
        """The models to serve, all alike."""
        return [f"{self.model}{place}" for place in range(self.models)]

    def inputs(self) -> list[Array]:
        """The inputs, the same in every run and for every server."""
        random = np.random.default_rng(7)
        shape = tuple(SOME_CONNECTIONS if each < 0 else each for each in self.shape)
        return [random.standard_normal(shape, dtype=np.float32) for _ in range(self.variants)]

    @property
    def in_bytes(self) -> int:
        """The bytes of one request's tensor."""
        return int(np.prod(self.shape)) * 4

    @property
    def out_bytes(self) -> int:
        """The bytes of one answer's tensor."""
        return {"mean": 4, "mlp": MLP_OUTPUTS * 4}.get(self.model, self.in_bytes)

    @property
    def is_large(self) -> bool:
        """Whether the size of tensors dominates the cost."""
        return self.in_bytes > 1 << 20


SCENES = (
    Scene(
        "small",
        "scale",
        (16,),
        (
            LoadLevel("small32", "16 floats in and out, 32 connections", 32),
            LoadLevel("small1", "16 floats in and out, one connection", 1),
        ),
    ),
    Scene(
        "json",
        "scale",
        (16,),
        (LoadLevel("json32", "16 floats as JSON, 32 connections", 32),),
        binary=False,
        variants=32,
    ),
    Scene(
        "ids",
        "scale",
        (16,),
        (LoadLevel("ids32", "16 floats, ids as tritonclient writes them, in JSON, by header; 32 connections", 32),),
        with_ids=True,
    ),
    Scene("clients", "scale", (16,), (LoadLevel("tritonclient1", "16 floats, tritonclient.http", 1, "tritonclient"),)),
    Scene(
        "tools",
        "scale",
        (16,),
        (
            LoadLevel("requests1", "16 floats as JSON, Python's requests with a session", 1, "requests"),
            LoadLevel("curl1", "16 floats as JSON, curl with one connection", 1, "curl"),
        ),
        binary=False,
    ),
    Scene(
        "mean",
        "mean",
        IMAGE,
        (
            LoadLevel("mean1", "12.6 MB in, mean out, one connection", 1),
            LoadLevel("mean4", "12.6 MB in, mean out, 4 connections", 4),
        ),
        variants=2,
    ),
    Scene(
        "double",
        "double",
        IMAGE,
        (
            LoadLevel("double1", "12.6 MB in and out, one connection", 1),
            LoadLevel("double4", "12.6 MB in and out, 4 connections", 4),
        ),
        variants=2,
    ),
    Scene(
        "mlp",
        "mlp",
        (1, MLP_INPUTS),
        (
            LoadLevel("mlp32", "ONNX MLP, batches of up to 16 in 2 ms, 32 connections", 32),
            LoadLevel("mlp1", "ONNX MLP with batching, one connection", 1),
        ),
        batching=True,
    ),
    Scene(
        "eight",
        "scale",
        (16,),
        (LoadLevel("eight32", "8 models in turn, 16 floats, 32 connections", 32),),
        models=8,
        variants=1,
    ),
)
