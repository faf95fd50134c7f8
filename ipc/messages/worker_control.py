"""Control messages between the controller and a worker.

controller --> worker     Boot, Attach, Stop
worker --> controller     Hello, Stage, Ready, LoadFailed
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mmsup.ipc.messages.handshake import Hello
from mmsup.ipc.specs import Metadata, ModelSpec


@dataclass(frozen=True, slots=True)
class ConfigureWorker:
    """Brain to worker, its first: what it is to become. Answered by Hello, Stages, then Ready or LoadFailed."""

    wire_version: int
    instance: int
    generation: int
    address: str
    """Where to bind a ZeroMQ socket for frames; empty: they come over the pairs alone."""
    spec: ModelSpec
    data_limit_bytes: int
    """RLIMIT_DATA to set, 0 for none (where no cgroup holds the cap)."""
    file_limit_bytes: int
    """RLIMIT_FSIZE; above any extent."""


@dataclass(frozen=True, slots=True)
class AttachGateway:
    """Brain to worker, with one descriptor: its end of a fresh pair with a gateway, whose requests are served from now
    on. EOF on it means that this link is over. `identity` is the link's alone, never used twice."""

    seat: int
    identity: bytes


@dataclass(frozen=True, slots=True)
class StopWorker:
    """Brain to worker: no more requests will come; finish what is queued, unload, exit 0."""


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """Worker to brain: progress of a load, for people: `importing onnxruntime`, `warming up`."""

    text: str
    is_warm_up: bool = False


@dataclass(frozen=True, slots=True)
class WorkerReady:
    """Worker to brain, after a warm-up run: it serves."""

    metadata: Metadata
    load_s: float


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """Worker to brain: why the model cannot be served here; the worker exits after it."""

    code: str
    text: str


TO_WORKER: Final = (ConfigureWorker, AttachGateway, StopWorker)

FROM_WORKER: Final = (Hello, LoadProgress, WorkerReady, LoadFailed)
