"""Control messages between the controller and a worker: TO_WORKER and FROM_WORKER."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mmsup.ipc.messages.handshake import Hello
from mmsup.ipc.specs import Metadata, ModelSpec


@dataclass(frozen=True, slots=True)
class ConfigureWorker:
    """The first message: what to load. Answered by Hello, LoadProgress..., then WorkerReady or LoadFailed."""

    wire_version: int
    instance: int
    generation: int
    address: str
    """ZeroMQ address to bind for data frames; empty: frames come over the socket pairs only."""
    spec: ModelSpec
    data_limit_bytes: int
    """RLIMIT_DATA; 0 where a cgroup enforces the memory limit."""
    file_limit_bytes: int
    """RLIMIT_FSIZE; larger than any extent."""
    is_shared: bool = False
    """For the process of a co-location group: it loads nothing itself, HostMember follows for each of its models.
    `spec` is that of the first of them, of which all share interpreter, environment, device and limits."""


@dataclass(frozen=True, slots=True)
class AttachGateway:
    """With one descriptor: the worker's end of a new data channel to the gateway in `seat`.

    EOF on it ends the link. `identity` is unique to the link and never reused.
    """

    seat: int
    identity: bytes


@dataclass(frozen=True, slots=True)
class HostMember:
    """To the process of a co-location group, with two descriptors: the worker's end of the control channel of one more
    model, and its status page. The first message on that channel is its ConfigureWorker, the last is MemberLeft."""


@dataclass(frozen=True, slots=True)
class OffloadModel:
    """No more requests will come for a while: finish what is queued, then move the model out of the memory that it
    serves from. Answered by ModelOffloaded, or by LoadFailed, after which the worker exits."""


@dataclass(frozen=True, slots=True)
class RestoreModel:
    """Move the model back: requests are about to come. Answered by ModelRestored, or by LoadFailed as above."""


@dataclass(frozen=True, slots=True)
class StopWorker:
    """No more requests will come: finish what is queued, unload, exit 0."""


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """Progress of the load as text for people: `importing onnxruntime`, `warming up`."""

    text: str
    is_warm_up: bool = False


@dataclass(frozen=True, slots=True)
class WorkerReady:
    """The warm-up has run; the worker serves requests."""

    metadata: Metadata
    load_s: float
    imported: tuple[str, ...] = ()
    """Those of ENGINE_SETS (zygote_control.py) that its interpreter has imported."""
    can_offload: bool = False
    """It takes OffloadModel and RestoreModel."""


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """Why the model could not be loaded; the worker exits after this message."""

    code: str
    text: str
    """For clients."""
    detail: str = ""
    """For the operator: type and line of what the model's code raised; empty if it raised nothing."""


@dataclass(frozen=True, slots=True)
class ModelOffloaded:
    """The model is out of the memory that it serves from."""

    took_s: float
    freed_bytes: int
    """Of its device, as its engine counts."""


@dataclass(frozen=True, slots=True)
class ModelRestored:
    """The model is back, and serves requests."""

    took_s: float


@dataclass(frozen=True, slots=True)
class MemberLeft:
    """The last message of a member of a co-location group, after StopWorker or LoadFailed: it is unloaded, and the
    process goes on."""


TO_WORKER: Final = (ConfigureWorker, AttachGateway, HostMember, OffloadModel, RestoreModel, StopWorker)

FROM_WORKER: Final = (Hello, LoadProgress, WorkerReady, LoadFailed, ModelOffloaded, ModelRestored, MemberLeft)
