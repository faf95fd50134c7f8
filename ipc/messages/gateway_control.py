"""Control messages between the controller and a gateway: TO_GATEWAY and FROM_GATEWAY.

A worker is named by (instance, generation) in all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from mmsup.ipc.log_settings import LogSettings
from mmsup.ipc.messages.handshake import Hello
from mmsup.ipc.poison_policy import PoisonEntry
from mmsup.ipc.rpc.keepalive import RpcKeepalive
from mmsup.ipc.specs import Metadata, ModelSpec


@dataclass(frozen=True, slots=True)
class ConfigureGateway:
    """The first message of each controller: the gateway's identity and limits. Answered by Hello."""

    wire_version: int
    seat: int
    generation: int
    server_name: str
    server_version: str
    max_body_bytes: int
    arena_bytes: int
    """Shared memory limit of this gateway, all links together."""
    restart_grace_s: float
    """How long a request waits for a model that is restarting."""
    max_requests: int
    max_request_bytes: int
    """Limits on requests in flight and their bytes, over all models."""
    front: str = "fast"
    """`fast`, or `plain`: aiohttp serves all HTTP requests."""
    cache_bytes: int = 0
    """Limit of this gateway's response cache; 0: none."""
    allow_hosts: tuple[str, ...] = ()
    """Host names that the listeners answer to beside their own; `*` is any."""
    allow_model_uploads: bool = False
    """Whether load requests may bring files."""
    allow_code_uploads: bool = False
    """Such with code in them too."""
    max_cold_requests: int = 1024
    max_cold_bytes: int = 128 << 20
    """Limits on the requests that wait for models to be loaded, and on what is held of their bodies meanwhile."""
    grpc_front: str = "own"
    """`own`: the gateway serves gRPC itself; `grpcio`: the front process does."""
    can_relay: bool = False
    """Whether that process could be started, if the own front does not work."""
    grpc_keepalive: RpcKeepalive = field(default_factory=RpcKeepalive)
    client_memory: str = "local"
    """Whose clients may share memory: `local` (of loopback and UNIX listeners), `all` or `none`."""
    client_memory_uids: tuple[int, ...] = ()
    """Users whose files clients of a TCP listener may register, beside the server's own."""


@dataclass(frozen=True, slots=True)
class LinkWorker:
    """With three descriptors: the worker's pidfd, its status page, the gateway's end of a new data channel.

    Sent after AttachGateway was sent to the worker. With an `address` data frames go there by ZeroMQ under `identity`,
    otherwise over the data channel.
    """

    instance: int
    generation: int
    address: str
    identity: bytes
    spec: ModelSpec
    metadata: Metadata


@dataclass(frozen=True, slots=True)
class UnlinkWorker:
    """Route no more requests to this worker; close the link when nothing is in flight on it."""

    instance: int
    generation: int


@dataclass(frozen=True, slots=True)
class Condemned:
    """This worker is about to be killed: answer or retry its requests in flight now."""

    instance: int
    generation: int
    code: str
    text: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """The cause of a worker's exit, from evidence: the error for its requests in flight."""

    instance: int
    generation: int
    code: str
    text: str
    retryable: bool


@dataclass(frozen=True, slots=True)
class VersionState:
    """One version in a Route. `code` and `reason`: why it does not serve."""

    version: str
    state: str
    code: str
    reason: str
    retry_after_s: float
    spec: ModelSpec | None
    """None if the configuration is invalid."""
    metadata: Metadata | None
    """None until a worker of this version was ready once, unless the configuration declares everything."""
    wake_wait_s: float = 0.0
    """It is asleep, or being loaded from sleep: how long a request may wait for it. 0: neither."""
    retryable: bool = False
    """A later request may be served, although `code` says otherwise."""


@dataclass(frozen=True, slots=True)
class Route:
    """The state of one model; replaces its previous Route. Which instances serve it follows from LinkWorker.

    `wanted` False: unloaded on request or never loaded (404). `default`: the version for requests that name none.
    """

    name: str
    wanted: bool
    default: str
    versions: tuple[VersionState, ...]


@dataclass(frozen=True, slots=True)
class Unroute:
    """The model is in no repository any more."""

    name: str


@dataclass(frozen=True, slots=True)
class Synced:
    """Every Route and LinkWorker in force has been sent: drop models and workers not named since ConfigureGateway.

    `ready`: readiness of the server; `reason`: why it is not ready.
    """

    ready: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Ping:
    """Answered by Pong when all earlier messages have been processed."""

    number: int


@dataclass(frozen=True, slots=True)
class Pong:
    number: int


@dataclass(frozen=True, slots=True)
class CommandRequest:
    """A command of an HTTP client (`load`, `unload`, `index`, `status`), or of the gateway for a request to a model
    that is asleep (`wake_for_request`). Answered by CommandReply."""

    id: int
    command: str
    arguments: dict[str, Any] = field(default_factory=dict[str, Any])  # JSON, checked by the controller


@dataclass(frozen=True, slots=True)
class CommandReply:
    """The reply to a CommandRequest. `code` empty: success."""

    id: int
    code: str
    text: str
    retry_after_s: float
    result: Any  # JSON, depends on the command
    retryable: bool | None = None
    """None: as the code says."""


@dataclass(frozen=True, slots=True)
class RequestOverdue:
    """The oldest request at this worker has waited `age_s` and no reply has come since it was sent."""

    instance: int
    generation: int
    age_s: float


@dataclass(frozen=True, slots=True)
class BadReply:
    """This worker violated the protocol and must be killed."""

    instance: int
    generation: int
    text: str


@dataclass(frozen=True, slots=True)
class InFlight:
    """One request in flight at a worker when its link closed. `id`: as the client named it, or empty."""

    id: str
    begun: bool
    """It may have started: it is answered with the verdict. Otherwise another worker gets it."""
    abandoned: bool
    """Its client was gone or its deadline had passed."""
    age_s: float
    """Since it was sent to the worker."""


@dataclass(frozen=True, slots=True)
class LinkClosed:
    """The link to this worker is closed; `requests`: details of the first of its requests in flight."""

    instance: int
    generation: int
    in_flight: int
    begun: int
    requests: tuple[InFlight, ...]


@dataclass(frozen=True, slots=True)
class PoisonSuspected:
    """A worker exited while it executed these requests of this gateway; `ran_alone`: its batch had only one request.

    The controller sends the updated entries to all gateways (AddPoisonEntries).
    """

    instance: int
    generation: int
    name: str
    entries: tuple[PoisonEntry, ...]
    ran_alone: bool


@dataclass(frozen=True, slots=True)
class SuspectCleared:
    """This suspect of model `name` ran alone and its worker survived. Forwarded as RemovePoisonEntry."""

    name: str
    fingerprint: bytes


@dataclass(frozen=True, slots=True)
class AddPoisonEntries:
    """Merge these entries into the model's poison list; of two entries for one request the stricter one holds."""

    name: str
    entries: tuple[PoisonEntry, ...]


@dataclass(frozen=True, slots=True)
class RemovePoisonEntry:
    """Remove this suspect from the model's poison list, unless it is blocked. Empty fingerprint: clear the list."""

    name: str
    fingerprint: bytes


@dataclass(frozen=True, slots=True)
class DrainGateway:
    """Accept no new inference request, finish those in flight. Answered by GatewayDrained."""


@dataclass(frozen=True, slots=True)
class RetireGateway:
    """Another gateway has taken the seat: accept no more connections, answer the last request of each existing one with
    `Connection: close`, and exit 0 when none is left. Not answered."""


@dataclass(frozen=True, slots=True)
class GatewayDrained:
    """No request is in flight any more."""


@dataclass(frozen=True, slots=True)
class MemoryRegion:
    """Memory that a client shares with the server: a range of a file in /dev/shm, or of a GPU's memory."""

    name: str
    kind: str
    """`system` or `cuda`."""
    key: str
    """Of the file. For `cuda` the UUID of the GPU: empty in a registration, filled in by the controller."""
    offset: int
    byte_size: int
    device: int = 0
    """Number of the GPU, for `cuda`."""
    handle: bytes = b""
    """CUDA IPC handle."""


@dataclass(frozen=True, slots=True)
class RegisterRegion:
    """A client registers a region; with its file's descriptor if it is of `system`. Answered by CommandReply.

    With the id 0 nobody waits for an answer: the gateway tells a new controller what it has.
    """

    id: int
    region: MemoryRegion


@dataclass(frozen=True, slots=True)
class UnregisterRegions:
    """A client unregisters the region of this name, or all of the kind (no name). Answered by CommandReply."""

    id: int
    kind: str
    name: str


@dataclass(frozen=True, slots=True)
class AddRegion:
    """This region is registered; with its file's descriptor if it is of `system`. Replaces another one of the name."""

    region: MemoryRegion


@dataclass(frozen=True, slots=True)
class RemoveRegion:
    name: str


TO_GATEWAY: Final = (
    ConfigureGateway,
    LogSettings,
    LinkWorker,
    UnlinkWorker,
    Condemned,
    Verdict,
    Route,
    Unroute,
    Synced,
    Ping,
    CommandReply,
    AddPoisonEntries,
    RemovePoisonEntry,
    AddRegion,
    RemoveRegion,
    DrainGateway,
    RetireGateway,
)


@dataclass(frozen=True, slots=True)
class RpcFrontFailed:
    """The gateway's own gRPC front has failed its self-test."""

    text: str


FROM_GATEWAY: Final = (
    Hello,
    RpcFrontFailed,
    Pong,
    CommandRequest,
    RequestOverdue,
    BadReply,
    LinkClosed,
    PoisonSuspected,
    SuspectCleared,
    RegisterRegion,
    UnregisterRegions,
    GatewayDrained,
)
