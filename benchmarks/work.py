"""The work: what is asked of every server, and how often at a time.

A *scene* is one start of a server: which model, how many of them, how tensors are written. A *run* is one load on it.
The models themselves are in apps/arithmetic.py, which the servers import.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

IMAGE = (3, 1024, 1024)
"""12.6 MB of 32-bit floats: a large picture, or a batch of twenty small ones."""
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
    limit_s: float = 30.0
    """How long a run may take before a server calls it hung, where it has such a limit."""
    variants: int = 8
    """How many different inputs: answers that were given to the wrong request are found out."""

    @property
    def names(self) -> list[str]:
        """The models to serve, all alike."""
        return [f"{self.model}{place}" for place in range(self.models)]

    def inputs(self) -> list[Array]:
        """What is sent, the same in every run and to every server."""
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
        """Whether bytes matter more than requests."""
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
    Scene("json", "scale", (16,), (LoadLevel("json32", "16 floats as JSON, 32 connections", 32),), binary=False),
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
