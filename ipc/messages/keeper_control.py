"""Messages between the controller and the keeper, as JSON: the keeper is standard library only.

controller --> keeper     Spawn, Signal, Forget, Remember, Notify, Upgrade, Finished, Beat
keeper --> controller     Inventory, Child, SpawnFailed, Exited, Terminate, Reload, StepDown, NotUpgraded
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


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
    counter_tables: bool
    oom_score_adj: int
    note: str
    """Kept with the child and told to the next brain; JSON of the brain's own."""


@dataclass(frozen=True, slots=True)
class SignalChild:
    """Brain to keeper: send a signal to this child, or (`group`) to its whole session, by pidfd, never by number."""

    token: str
    signal: int
    whole_session: bool = False


@dataclass(frozen=True, slots=True)
class ForgetChild:
    """Brain to keeper: this death is written down; drop what is kept of the child."""

    token: str


@dataclass(frozen=True, slots=True)
class SaveCheckpoint:
    """Brain to keeper: keep this text for the next brain, instead of the last one."""

    text: str


@dataclass(frozen=True, slots=True)
class NotifySystemd:
    """Brain to keeper: pass this on to systemd (`READY=1`, `STATUS=…`)."""

    text: str


@dataclass(frozen=True, slots=True)
class RequestUpgrade:
    """Brain to keeper: let the next brain, and if its own files have changed (or `force`) the keeper itself, be of the
    code that lies on disk now. Answered by StepDown once that code has shown that it starts, else by NotUpgraded."""

    force: bool


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Brain to keeper: its loop turns. None for too long: the keeper kills it and starts another."""


@dataclass(frozen=True, slots=True)
class ShutdownFinished:
    """Brain to keeper: the drain is over; end what is left, close the listeners, exit with this code."""

    code: int


@dataclass(frozen=True, slots=True)
class KeeperInventory:
    """Keeper to brain, its first: followed by one Child (and Exited, if it died meanwhile) for each of `children`."""

    keeper_pid: int
    generation: int
    """How many brains there were, this one included."""
    settings: str
    """The JSON that the keeper was started with, unread by it."""
    checkpoint: str
    children: int
    addresses: dict[str, str]
    """Listener name to the address it got: `http` to `127.0.0.1:8000`; `control` and others of UNIX kind to a path."""
    stopping: bool
    """SIGTERM had already come."""
    keeper_generation: int = 1
    """How often this keeper has become another program of the same pid, its first included."""


@dataclass(frozen=True, slots=True)
class ChildDescriptors:
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
class ChildExited:
    """Keeper to brain: a child is dead and reaped. `signal` 0: it exited with `status`. Kept until Forget."""

    token: str
    pid: int
    status: int
    signal: int


@dataclass(frozen=True, slots=True)
class TerminateRequested:
    """Keeper to brain: SIGTERM came; drain and say Finished."""


@dataclass(frozen=True, slots=True)
class ReloadRequested:
    """Keeper to brain: SIGHUP came; read configuration and repositories again."""


@dataclass(frozen=True, slots=True)
class StepDown:
    """Keeper to brain: leave, in good order; the next one follows at once. `renews`: the keeper, too, is another
    program by then."""

    replaces_keeper: bool


@dataclass(frozen=True, slots=True)
class UpgradeRefused:
    """Keeper to brain: the code on disk cannot take over, for this reason; everything is as it was."""

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
    ChildDescriptors,
    SpawnFailed,
    ChildExited,
    TerminateRequested,
    ReloadRequested,
    StepDown,
    UpgradeRefused,
)
