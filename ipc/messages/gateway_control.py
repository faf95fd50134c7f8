"""Control messages between the controller and a gateway.

controller --> gateway    Configure, Link, Unlink, Condemned, Verdict, Route, Unroute, Synced, Ping, Answer,
                          Quarantine, Pardon, Drain, Retire
gateway --> controller    Hello, Pong, Ask, Overdue, BadReply, Ended, Suspected, Lived, Drained
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from mmsup.ipc.messages.handshake import Hello
from mmsup.ipc.poison_policy import PoisonEntry
from mmsup.ipc.specs import Metadata, ModelSpec


@dataclass(frozen=True, slots=True)
class ConfigureGateway:
    """Brain to gateway, its first: who it is and its bounds. Answered by Hello."""

    wire_version: int
    seat: int
    generation: int
    server_name: str
    server_version: str
    max_body_bytes: int
    arena_bytes: int
    """Quota of arena memory of this gateway, all links together."""
    restart_grace_s: float
    """How long a request waits for a model that is coming back."""
    max_requests: int
    max_request_bytes: int
    """Bounds over all models of this gateway."""
    front: str = "fast"
    """`fast`, or `plain`: all of HTTP is served by aiohttp."""


@dataclass(frozen=True, slots=True)
class LinkWorker:
    """Brain to gateway, with three descriptors: the worker's pidfd, its status page, our end of a fresh pair.
    The worker has been told (Attach) to serve it. With an `address` frames go there by ZeroMQ, under `identity`;
    without one they go over the pair."""

    instance: int
    generation: int
    address: str
    identity: bytes
    spec: ModelSpec
    metadata: Metadata


@dataclass(frozen=True, slots=True)
class UnlinkWorker:
    """Brain to gateway: route nothing more to this life; when its pending is empty, let go of it."""

    instance: int
    generation: int


@dataclass(frozen=True, slots=True)
class Condemned:
    """Brain to gateway: this life is about to be killed. Answer or retry what is pending there, now."""

    instance: int
    generation: int
    code: str
    text: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """Brain to gateway: why that life ended, from evidence; the text of the errors for what was in flight."""

    instance: int
    generation: int
    code: str
    text: str
    retryable: bool


@dataclass(frozen=True, slots=True)
class VersionState:
    """One version in a Route. `state` is a lifecycle word; `code`/`reason` say why it does not serve."""

    version: str
    state: str
    code: str
    reason: str
    retry_after_s: float
    spec: ModelSpec | None
    """None where the configuration itself is faulty."""
    metadata: Metadata | None
    """None until a worker of this version was ready once, unless configuration declares all."""


@dataclass(frozen=True, slots=True)
class Route:
    """Brain to gateway: all there is to know about a model; replaces what was said before.

    `wanted` False: unloaded on purpose (or never loaded): 404. `default`: the version that serves a request
    without one. Which instances serve it follows from the Links.
    """

    name: str
    wanted: bool
    default: str
    versions: tuple[VersionState, ...]


@dataclass(frozen=True, slots=True)
class Unroute:
    """Brain to gateway: this model is in no repository any more."""

    name: str


@dataclass(frozen=True, slots=True)
class Synced:
    """Brain to gateway: every Route and Link that holds has been said; forget models and lives not named since
    Configure. `ready` is the server's readiness, `reason` why not."""

    ready: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Ping:
    """Brain to gateway or worker-to-be: answered by Pong when all that was said before has been done."""

    number: int


@dataclass(frozen=True, slots=True)
class Pong:
    """Gateway to brain."""

    number: int


@dataclass(frozen=True, slots=True)
class CommandRequest:
    """Gateway to brain: a control verb of its client (`load`, `unload`, `index`, `status`). Answered by Answer."""

    id: int
    command: str
    arguments: dict[str, Any] = field(default_factory=dict[str, Any])  # JSON, checked by the brain


@dataclass(frozen=True, slots=True)
class CommandReply:
    """Brain to gateway: the end of an Ask. `code` empty: `result` holds."""

    id: int
    code: str
    text: str
    retry_after_s: float
    result: Any  # JSON, by verb


@dataclass(frozen=True, slots=True)
class RequestOverdue:
    """Gateway to brain: the oldest request at this life has waited `age_s` and nothing has come back since."""

    instance: int
    generation: int
    age_s: float


@dataclass(frozen=True, slots=True)
class BadReply:
    """Gateway to brain: this worker's answer broke the protocol; it is not to be trusted further."""

    instance: int
    generation: int
    text: str


@dataclass(frozen=True, slots=True)
class InFlight:
    """One request that was with a life at its end. `id` is its client's own, empty if it gave none."""

    id: str
    begun: bool
    """It may have been executing: it is answered with the verdict. Otherwise it goes to the next worker."""
    abandoned: bool
    """Nobody waited for its answer any more."""
    age_s: float
    """Since it went to the worker."""


@dataclass(frozen=True, slots=True)
class LinkClosed:
    """Gateway to brain: its link to this life is over; what was in flight there, `requests` the first of it."""

    instance: int
    generation: int
    in_flight: int
    begun: int
    requests: tuple[InFlight, ...]


@dataclass(frozen=True, slots=True)
class PoisonSuspected:
    """Gateway to brain: that life ended in a run with these requests of ours, `alone` if the run had only one. What we
    hold of them now; the brain tells all gateways (Quarantine)."""

    instance: int
    generation: int
    name: str
    entries: tuple[PoisonEntry, ...]
    ran_alone: bool


@dataclass(frozen=True, slots=True)
class SuspectCleared:
    """Gateway to brain: this suspect of model `name` ran alone and its worker lives. Passed on as Pardon."""

    name: str
    fingerprint: bytes


@dataclass(frozen=True, slots=True)
class AddPoisonEntries:
    """Brain to gateway: cases of a model, beside those that it knows; of two words on one request the graver holds."""

    name: str
    entries: tuple[PoisonEntry, ...]


@dataclass(frozen=True, slots=True)
class RemovePoisonEntry:
    """Brain to gateway: take this suspect of a model from the list (what is blocked stays so); an empty fingerprint:
    the whole list, what is blocked too."""

    name: str
    fingerprint: bytes


@dataclass(frozen=True, slots=True)
class DrainGateway:
    """Brain to gateway: take no new inference, finish what is accepted. Answered by Drained."""


@dataclass(frozen=True, slots=True)
class RetireGateway:
    """Brain to gateway: another one serves in your stead. Accept no more connections, answer what comes on those you
    have, the last answer of each with `Connection: close`, and exit 0 when you have none. Nothing answers it."""


@dataclass(frozen=True, slots=True)
class GatewayDrained:
    """Gateway to brain: nothing is in flight here any more."""


TO_GATEWAY: Final = (
    ConfigureGateway,
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
    DrainGateway,
    RetireGateway,
)

FROM_GATEWAY: Final = (
    Hello,
    Pong,
    CommandRequest,
    RequestOverdue,
    BadReply,
    LinkClosed,
    PoisonSuspected,
    SuspectCleared,
    GatewayDrained,
)
