"""Every message that crosses a process border, once.

Covers: who says it to whom, and what answers it. The wire has one version, said in the first message each way.
Does not cover: bytes (codec.py), sockets (channel.py for tensors, seqpacket.py for control),
the command line's JSON lines (supervisor/api/control_socket.py).

    brain ──control──▶ keeper     Spawn, Signal, Forget, Remember, Notify, Upgrade,         (JSON: the keeper is
                                  Finished, Beat                                             standard library only)
    keeper ─control──▶ brain      Inventory, Child, SpawnFailed, Exited, Terminate, Reload, StepDown, NotUpgraded
    brain ──control──▶ worker     Boot, Attach, Stop
    worker ─control──▶ brain      Hello, Stage, Ready, LoadFailed
    brain ──control──▶ gateway    Configure, Link, Unlink, Condemned, Verdict, Route, Unroute, Synced, Ping, Answer,
                                  Quarantine, Pardon, Drain, Retire
    gateway ─control─▶ brain      Hello, Pong, Ask, Overdue, BadReply, Ended, Suspected, Lived, Drained
    gateway ──link───▶ worker     Infer, Grant, Drop                   (many in one frame)
    gateway ──link───▶ worker     Extent, Release                      (with descriptors; always over the socket pair)
    worker ──link────▶ gateway    Reply                                (many in one frame)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from mmsup.ipc.poison_policy import Case
from mmsup.ipc.specs import Metadata, ModelSpec, TensorSpec

WIRE_VERSION: Final = 3

# Data: gateway <-> worker. Hot; packed by hand in codec.py. Nobody changes one once it is made; they are not frozen
# because making a frozen one costs seven times as much (1.4 and 0.2 µs for seven fields, Python 3.11), every time.
#
# What requests have in common (names, shapes, parameters) is packed once, as their *words*; a record carries the words
# as bytes, and whoever reads them looks them up by these bytes. So there is no numbering to keep in step, and a peer
# that forgets loses nothing.

Place = bytes | memoryview | tuple[int, int, int]
"""Where a tensor's bytes are: here, or (segment, offset, size) of the arena."""


@dataclass(frozen=True, slots=True)
class Form:
    """The words of an Infer: what requests may have in common. Inputs have the shapes of this request.

    `outputs`: names wanted, empty means all.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]
    parameters: dict[str, Any]  # scalars, checked by the gateway
    priority: int = 0
    """1 is the highest class, 0 the model's own."""
    alone: bool = False
    """It shares its run with nobody, and what ran before it is answered first: it may be what ends the worker."""


@dataclass(frozen=True, slots=True)
class Outline:
    """The words of a Reply with a result: its outputs, with the shapes that they have this time."""

    outputs: tuple[TensorSpec, ...]


@dataclass(slots=True)
class Infer:
    """Gateway to worker: run the model. Answered by exactly one Reply with the same id (or the worker's death).

    `words` is a Form, `places` where each of its inputs is. `grant`: (segment, offset, size) of out-arena space for the
    outputs that are too large to travel inline, packed in order at 64-byte steps; None if none is expected.
    `deadline_ns`: CLOCK_MONOTONIC; past it the request is dropped before it runs.
    """

    id: int
    words: bytes
    deadline_ns: int
    grant: tuple[int, int, int] | None
    places: tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class Grant:
    """Gateway to worker: `size` bytes of the out-arena for the outputs of request `id`. Answered by Reply.

    Sent again, larger, after a Reply with `need`.
    """

    id: int
    segment: int
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Drop:
    """Gateway to worker: forget request `id` (queued, or kept for a larger grant). Answered by Reply `cancelled`
    if it had not begun; otherwise its own Reply comes."""

    id: int


@dataclass(slots=True)
class Reply:
    """Worker to gateway: the outcome of one Infer.

    `code` empty: `words` is an Outline, `places` where each of its outputs is. `need` > 0: the result is kept, a Grant
    of that many bytes is wanted. Else `code` and `text` say what went wrong. Times in nanoseconds; `batch` is how many
    requests ran together.
    """

    id: int
    code: str = ""
    text: str = ""
    words: bytes = b""
    places: tuple[Place, ...] = ()
    need: int = 0
    queue_ns: int = 0
    input_ns: int = 0
    infer_ns: int = 0
    output_ns: int = 0
    batch: int = 1


# Link: descriptors from gateway to worker, on the socket pair that came with Link and Attach.


@dataclass(frozen=True, slots=True)
class Extent:
    """Gateway to worker, with one descriptor: memory `segment` of `size` bytes; `writable` is the out-arena."""

    segment: int
    size: int
    writable: bool


@dataclass(frozen=True, slots=True)
class Release:
    """Gateway to worker: `segment` will not be named again; unmap it."""

    segment: int


# Control: brain <-> worker.


@dataclass(frozen=True, slots=True)
class Hello:
    """First message of a worker or gateway, and its answer to a new brain's Boot-less Ping: who it is."""

    role: str
    wire: int
    instance: int
    generation: int


@dataclass(frozen=True, slots=True)
class Boot:
    """Brain to worker, its first: what it is to become. Answered by Hello, Stages, then Ready or LoadFailed."""

    wire: int
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
class Attach:
    """Brain to worker, with one descriptor: its end of a fresh pair with a gateway, whose requests are served from now
    on. EOF on it means that this link is over. `identity` is the link's alone, never used twice."""

    gateway: int
    identity: bytes


@dataclass(frozen=True, slots=True)
class Stop:
    """Brain to worker: no more requests will come; finish what is queued, unload, exit 0."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Worker to brain: progress of a load, for people: `importing onnxruntime`, `warming up`."""

    text: str
    warming: bool = False


@dataclass(frozen=True, slots=True)
class Ready:
    """Worker to brain, after a warm-up run: it serves."""

    metadata: Metadata
    load_s: float


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """Worker to brain: why the model cannot be served here; the worker exits after it."""

    code: str
    text: str


# Control: brain <-> gateway.


@dataclass(frozen=True, slots=True)
class Configure:
    """Brain to gateway, its first: who it is and its bounds. Answered by Hello."""

    wire: int
    gateway: int
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
class Link:
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
class Unlink:
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
class Ask:
    """Gateway to brain: a control verb of its client (`load`, `unload`, `index`, `status`). Answered by Answer."""

    id: int
    verb: str
    arguments: dict[str, Any] = field(default_factory=dict[str, Any])  # JSON, checked by the brain


@dataclass(frozen=True, slots=True)
class Answer:
    """Brain to gateway: the end of an Ask. `code` empty: `result` holds."""

    id: int
    code: str
    text: str
    retry_after_s: float
    result: Any  # JSON, by verb


@dataclass(frozen=True, slots=True)
class Overdue:
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
class Ended:
    """Gateway to brain: its link to this life is over; what was in flight there, `requests` the first of it."""

    instance: int
    generation: int
    in_flight: int
    begun: int
    requests: tuple[InFlight, ...]


@dataclass(frozen=True, slots=True)
class Suspected:
    """Gateway to brain: that life ended in a run with these requests of ours, `alone` if the run had only one. What we
    hold of them now; the brain tells all gateways (Quarantine)."""

    instance: int
    generation: int
    name: str
    cases: tuple[Case, ...]
    alone: bool


@dataclass(frozen=True, slots=True)
class Lived:
    """Gateway to brain: this suspect of model `name` ran alone and its worker lives. Passed on as Pardon."""

    name: str
    fingerprint: bytes


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Brain to gateway: cases of a model, beside those that it knows; of two words on one request the graver holds."""

    name: str
    cases: tuple[Case, ...]


@dataclass(frozen=True, slots=True)
class Pardon:
    """Brain to gateway: take this suspect of a model from the list (what is blocked stays so); an empty fingerprint:
    the whole list, what is blocked too."""

    name: str
    fingerprint: bytes


@dataclass(frozen=True, slots=True)
class Drain:
    """Brain to gateway: take no new inference, finish what is accepted. Answered by Drained."""


@dataclass(frozen=True, slots=True)
class Retire:
    """Brain to gateway: another one serves in your stead. Accept no more connections, answer what comes on those you
    have, the last answer of each with `Connection: close`, and exit 0 when you have none. Nothing answers it."""


@dataclass(frozen=True, slots=True)
class Drained:
    """Gateway to brain: nothing is in flight here any more."""


# Control: brain <-> keeper.


@dataclass(frozen=True, slots=True)
class Spawn:
    """Brain to keeper: start a process. Answered by Child with its descriptors, or SpawnFailed.

    The keeper adds to `argv` one `NAME=FD` for each descriptor that the child inherits: `lifeline` (EOF: the keeper
    is gone), `control` (its end of the pair), `page`, `crash` (for faulthandler), then `listen:NAME` for each of
    `listeners` and, if `tallies`, `tally:0` … of all gateway places. Standard output and error go to its log pipe.
    """

    token: str
    """Chosen by the brain, never used twice: `worker.7.3`, `gateway.0.2` (role, instance or place, generation)."""
    argv: tuple[str, ...]
    env: dict[str, str]
    """The whole environment, nothing is inherited."""
    cwd: str
    procs_files: tuple[str, ...]
    """`cgroup.procs` files the child writes itself into before it runs anything."""
    listeners: tuple[str, ...]
    tallies: bool
    oom_score_adj: int
    note: str
    """Kept with the child and told to the next brain; JSON of the brain's own."""


@dataclass(frozen=True, slots=True)
class Signal:
    """Brain to keeper: send a signal to this child, or (`group`) to its whole session, by pidfd, never by number."""

    token: str
    signal: int
    group: bool = False


@dataclass(frozen=True, slots=True)
class Forget:
    """Brain to keeper: this death is written down; drop what is kept of the child."""

    token: str


@dataclass(frozen=True, slots=True)
class Remember:
    """Brain to keeper: keep this text for the next brain, instead of the last one."""

    text: str


@dataclass(frozen=True, slots=True)
class Notify:
    """Brain to keeper: pass this on to systemd (`READY=1`, `STATUS=…`)."""

    text: str


@dataclass(frozen=True, slots=True)
class Upgrade:
    """Brain to keeper: let the next brain, and if its own files have changed (or `force`) the keeper itself, be of the
    code that lies on disk now. Answered by StepDown once that code has shown that it starts, else by NotUpgraded."""

    force: bool


@dataclass(frozen=True, slots=True)
class Beat:
    """Brain to keeper: its loop turns. None for too long: the keeper kills it and starts another."""


@dataclass(frozen=True, slots=True)
class Finished:
    """Brain to keeper: the drain is over; end what is left, close the listeners, exit with this code."""

    code: int


@dataclass(frozen=True, slots=True)
class Inventory:
    """Keeper to brain, its first: followed by one Child (and Exited, if it died meanwhile) for each of `children`."""

    keeper_pid: int
    generation: int
    """How many brains there were, this one included."""
    settings: str
    """The JSON that the keeper was started with, unread by it."""
    remembered: str
    children: int
    addresses: dict[str, str]
    """Listener name to the address it got: `http` to `127.0.0.1:8000`; `control` and others of UNIX kind to a path."""
    stopping: bool
    """SIGTERM had already come."""
    keeper_life: int = 1
    """How often this keeper has become another program of the same pid, its first included."""


@dataclass(frozen=True, slots=True)
class Child:
    """Keeper to brain, with five descriptors: pidfd, control, page, crash, log. A new child, or an old one."""

    token: str
    pid: int
    note: str


@dataclass(frozen=True, slots=True)
class SpawnFailed:
    """Keeper to brain: that process could not be started."""

    token: str
    text: str


@dataclass(frozen=True, slots=True)
class Exited:
    """Keeper to brain: a child is dead and reaped. `signal` 0: it exited with `status`. Kept until Forget."""

    token: str
    pid: int
    status: int
    signal: int


@dataclass(frozen=True, slots=True)
class Terminate:
    """Keeper to brain: SIGTERM came; drain and say Finished."""


@dataclass(frozen=True, slots=True)
class Reload:
    """Keeper to brain: SIGHUP came; read configuration and repositories again."""


@dataclass(frozen=True, slots=True)
class StepDown:
    """Keeper to brain: leave, in good order; the next one follows at once. `renews`: the keeper, too, is another
    program by then."""

    renews: bool


@dataclass(frozen=True, slots=True)
class NotUpgraded:
    """Keeper to brain: the code on disk cannot take over, for this reason; everything is as it was."""

    text: str


TO_KEEPER: Final = (Spawn, Signal, Forget, Remember, Notify, Upgrade, Beat, Finished)
FROM_KEEPER: Final = (Inventory, Child, SpawnFailed, Exited, Terminate, Reload, StepDown, NotUpgraded)
TO_WORKER: Final = (Boot, Attach, Stop)
FROM_WORKER: Final = (Hello, Stage, Ready, LoadFailed)
TO_GATEWAY: Final = (
    Configure,
    Link,
    Unlink,
    Condemned,
    Verdict,
    Route,
    Unroute,
    Synced,
    Ping,
    Answer,
    Quarantine,
    Pardon,
    Drain,
    Retire,
)
FROM_GATEWAY: Final = (Hello, Pong, Ask, Overdue, BadReply, Ended, Suspected, Lived, Drained)
WORDS: Final = (Form, Outline)
