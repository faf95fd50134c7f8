"""Messages between the controller and the keeper: TO_KEEPER and FROM_KEEPER.

They are JSON because the keeper uses only the standard library.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start a process. Answered by ChildDescriptors or SpawnFailed; before that by NotForked if a zygote was to fork it
    and did not.

    The keeper appends one `NAME=FD` argument to `argv` for each inherited descriptor: `lifeline` (EOF: the keeper has
    exited), `control` (the child's end of its control channel), `page` (status page), `crash` (for faulthandler),
    `listen:NAME` for each of `listeners`, and with `counter_tables` `tally:0`, `tally:1`, ... of all gateway seats.
    Standard output and error go to the log pipe.
    """

    token: str
    """Chosen by the controller, never reused: `worker.7.3`, `gateway.0.2` (role, instance or seat, generation)."""
    argv: tuple[str, ...]
    env: dict[str, str]
    """The complete environment; nothing is inherited."""
    cwd: str
    procs_files: tuple[str, ...]
    """`cgroup.procs` files into which the child writes itself before exec."""
    listeners: tuple[str, ...]
    counter_tables: bool
    oom_score_adj: int
    note: str
    """Opaque to the keeper, which returns it to a restarted controller in ChildDescriptors."""
    is_zygote: bool = False
    """It inherits `fork` as well, over which the keeper has workers forked (zygote_control.py)."""
    zygote: str = ""
    """The token of the zygote that is to fork it. If it does not, the keeper executes `argv`; empty: at once."""
    fork_limit_s: float = 0.0
    """How long that zygote may take to answer; then it is killed."""
    host: str = ""
    """The token of the process in which it is to run, that of its co-location group. Nothing is started then: it gets a
    control channel and a status page, and its exit is that of the process, unless it is forgotten before."""


@dataclass(frozen=True, slots=True)
class SignalChild:
    """Send a signal to this child by its pidfd, or to all processes of its session.

    A worker that a zygote has not forked yet is not started any more: SpawnFailed."""

    token: str
    signal: int
    whole_session: bool = False


@dataclass(frozen=True, slots=True)
class ForgetChild:
    """The exit of this child has been recorded: close its descriptors and remove it from the child table."""

    token: str


@dataclass(frozen=True, slots=True)
class SaveCheckpoint:
    """Hold this text under this key for the next controller; an empty text removes the key."""

    key: str
    text: str


@dataclass(frozen=True, slots=True)
class NotifySystemd:
    """Forward this to the service manager (`READY=1`, `STATUS=...`)."""

    text: str


@dataclass(frozen=True, slots=True)
class RequestUpgrade:
    """Switch to the code that is on disk now: a new controller, and a re-exec of the keeper if its own files changed
    (or `force`). Answered by StepDown after a successful preflight run of that code, otherwise by UpgradeRefused."""

    force: bool


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The controller's event loop is running. If none comes for too long the keeper kills and restarts it."""


@dataclass(frozen=True, slots=True)
class ShutdownFinished:
    """The drain is complete: end what is left, close the listeners, exit with this code."""

    code: int


@dataclass(frozen=True, slots=True)
class KeeperInventory:
    """The keeper's first message; followed by one ChildDescriptors (and ChildExited if it is dead) per child."""

    keeper_pid: int
    generation: int
    """Number of controllers so far, including this one."""
    settings: str
    """The JSON that the keeper was started with; the keeper does not interpret it."""
    checkpoint_parts: int
    """How many CheckpointPart messages follow, before the children."""
    children: int
    addresses: dict[str, str]
    """Listener name to its bound address: `http` to `127.0.0.1:8000`, `control` and other UNIX sockets to a path."""
    stopping: bool
    """SIGTERM has already been received."""
    keeper_generation: int = 1
    """Number of programs that this keeper process has executed, including the first (re-exec keeps the pid)."""


@dataclass(frozen=True, slots=True)
class CheckpointPart:
    """Some of the texts that the controllers before it saved, by key."""

    entries: dict[str, str]


@dataclass(frozen=True, slots=True)
class ChildDescriptors:
    """With five descriptors: pidfd, control, page, crash, log. After Spawn, or for a child of an earlier controller.

    With a `host` four: pidfd, control, page, and the host's end of the control channel, for HostMember."""

    token: str
    pid: int
    note: str


@dataclass(frozen=True, slots=True)
class SpawnFailed:
    token: str
    text: str


@dataclass(frozen=True, slots=True)
class NotForked:
    """The zygote of a Spawn did not fork it, for this reason: it is started by exec."""

    token: str
    text: str


@dataclass(frozen=True, slots=True)
class ChildExited:
    """A child was reaped. `signal` 0: it exited with `status`. Sent again to a new controller until ForgetChild."""

    token: str
    pid: int
    status: int
    signal: int


@dataclass(frozen=True, slots=True)
class StopReason:
    """Which signal ends the server, and who sent it, in words. TerminateRequested follows."""

    text: str


@dataclass(frozen=True, slots=True)
class TerminateRequested:
    """SIGTERM was received: drain, then send ShutdownFinished."""


@dataclass(frozen=True, slots=True)
class ReloadRequested:
    """SIGHUP was received: read the configuration and the repositories again."""


@dataclass(frozen=True, slots=True)
class StepDown:
    """Exit in good order; the next controller is started at once."""

    replaces_keeper: bool
    """The keeper re-executes itself as well."""


@dataclass(frozen=True, slots=True)
class UpgradeRefused:
    """The code on disk cannot take over, for this reason; nothing has changed."""

    text: str


TO_KEEPER: Final = (
    Spawn,
    SignalChild,
    ForgetChild,
    SaveCheckpoint,
    NotifySystemd,
    RequestUpgrade,
    Heartbeat,
    ShutdownFinished,
)

FROM_KEEPER: Final = (
    KeeperInventory,
    CheckpointPart,
    ChildDescriptors,
    SpawnFailed,
    NotForked,
    ChildExited,
    StopReason,
    TerminateRequested,
    ReloadRequested,
    StepDown,
    UpgradeRefused,
)
