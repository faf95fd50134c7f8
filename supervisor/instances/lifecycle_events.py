"""States, events and actions of the state machine in lifecycle.py. Values only; nothing here decides."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, Final

from mmsup.supervisor.instances.restart_policy import NextTry


class InstanceState(enum.StrEnum):
    ABSENT = "absent"
    STARTING = "starting"
    LOADING = "loading"
    WARMING = "warming"
    READY = "ready"
    OFFLOADING = "offloading"
    OFFLOADED = "offloaded"
    RESTORING = "restoring"
    DRAINING = "draining"
    STOPPING = "stopping"
    QUARANTINED = "quarantined"
    BACKOFF = "backoff"
    FAILED = "failed"
    STOPPED = "stopped"


STARTING_UP: Final = frozenset({InstanceState.STARTING, InstanceState.LOADING, InstanceState.WARMING})
LOADING: Final = STARTING_UP | {InstanceState.RESTORING}
"""States in which it takes the memory that it is going to serve from."""
OFFLOADABLE: Final = frozenset({InstanceState.OFFLOADING, InstanceState.OFFLOADED})
"""Its process can be had back by a restore."""
ALIVE: Final = (
    STARTING_UP
    | OFFLOADABLE
    | {
        InstanceState.READY,
        InstanceState.RESTORING,
        InstanceState.DRAINING,
        InstanceState.STOPPING,
        InstanceState.QUARANTINED,
    }
)
"""States in which there is a process."""


@dataclass(frozen=True, slots=True)
class Situation:
    wanted: bool = False
    state: InstanceState = InstanceState.ABSENT


# What events and actions have in common. Two are equal if type and fields are.


@dataclass(frozen=True, slots=True)
class _Plain:
    pass


@dataclass(frozen=True, slots=True)
class _Text:
    text: str


@dataclass(frozen=True, slots=True)
class _CodeAndText:
    code: str
    text: str


@dataclass(frozen=True, slots=True)
class _LoadFailure(_CodeAndText):
    detail: str = ""
    """For the operator alone."""


@dataclass(frozen=True, slots=True)
class _Ended:
    next: NextTry
    """The decision of the restart policy, should the instance be wanted."""


# Events.


class WantUp(_Plain):
    """It shall serve."""


class WantDown(_Plain):
    """It shall drain and stop."""


class WantOffloaded(_Plain):
    """It shall serve no more, and keep its process with the model out of the memory that it serves from."""


class LoadAdmitted(_Plain):
    """It may load now, or be restored."""


class ProcessStarted(_Plain):
    """The keeper has started the process."""


class StartFailed(_Ended):
    """The process could not be started."""


@dataclass(frozen=True, slots=True)
class LoadProgressed:
    """The worker reports how far its load is."""

    is_warm_up: bool


class BecameReady(_Plain):
    """The worker reports that it is ready."""


class LoadReportedFailed(_LoadFailure):
    """The worker reports why its model cannot be loaded, offloaded or restored; it is about to exit."""


@dataclass(frozen=True, slots=True)
class Offloaded:
    """The worker reports that its model is out of the memory that it serves from."""

    took_s: float
    freed_bytes: int
    """Of its device."""


@dataclass(frozen=True, slots=True)
class Restored:
    """The worker reports that its model is back."""

    took_s: float


class RestoreRefused(_Plain):
    """Memory has no room for its model."""


class CrashReported(_CodeAndText):
    """faulthandler has written to the crash pipe: the exit follows when the kernel has torn the process down."""


class ProcessExited(_Ended):
    """The process is dead and reaped."""


class HangDetected(_Text):
    """The liveness probe found no progress in a worker that is ready."""


class LoadTimedOut(_Text):
    """The liveness probe found that a load exceeds its limit."""


class ProtocolViolated(_Text):
    """The worker broke the protocol, or closed its channel."""


class OutOfMemory(_Text):
    """The kernel killed a process of its control group for memory: the worker or a child of it."""


class GpuMemoryExceeded(_Text):
    """It holds more memory of its device than its model may."""


class ExitOverdue(_Plain):
    """The process should have exited by now."""


class Unkillable(_Plain):
    """SIGKILL has not ended the process in time: it is blocked in the kernel."""


class RetryDue(_Plain):
    """It is time for the next try."""


Event = (
    WantUp | WantDown | WantOffloaded | LoadAdmitted | ProcessStarted | StartFailed | LoadProgressed | BecameReady
    | LoadReportedFailed | Offloaded | Restored | RestoreRefused | CrashReported | ProcessExited | HangDetected
    | LoadTimedOut | ProtocolViolated | OutOfMemory | GpuMemoryExceeded | ExitOverdue | Unkillable | RetryDue
)  # fmt: skip
EVENTS: Final[tuple[type[Any], ...]] = Event.__args__  # the union's own list


# Actions.


class QueueLoad(_Plain):
    """Wait for a turn to load."""


class StartProcess(_Plain):
    """Start a process: the next generation."""


class AnnounceReady(_Plain):
    """It is ready: link it to the gateways if its revision is active."""


@dataclass(frozen=True, slots=True)
class RecordLoadFailure(_LoadFailure):
    """Record why it could not be loaded. `is_death`: its process was ended, and the model has reported nothing."""

    is_death: bool = False


class StopRouting(_Plain):
    """Let the gateways send it no more requests."""


class StartDrain(_Plain):
    """When the gateways have applied that: tell the worker to finish and exit."""


class StartOffload(_Plain):
    """When the gateways have applied that: tell the worker to move its model out of memory."""


@dataclass(frozen=True, slots=True)
class AnnounceOffloaded:
    """Its model is out of the memory that it serves from."""

    took_s: float
    freed_bytes: int


class StartRestore(_Plain):
    """Tell the worker to move its model back, if memory has room for it."""


@dataclass(frozen=True, slots=True)
class AnnounceRestored:
    """It is ready again: link it to the gateways if its revision is active."""

    took_s: float


@dataclass(frozen=True, slots=True)
class RecordMoveFailure:
    """Record why its model could not be offloaded or restored: that is not tried again with these files."""

    is_restore: bool
    text: str
    detail: str = ""


class Condemn(_CodeAndText):
    """Tell the gateways that it is about to be killed, so that they answer or retry its requests now."""


class ExpectExit(_Plain):
    """Give it a moment to exit by itself."""


class Kill(_Plain):
    """SIGKILL, once the gateways have applied what was sent before."""


class RecordUnkillable(_Plain):
    """Record that nothing waits for it any more."""


@dataclass(frozen=True, slots=True)
class ScheduleRetry:
    """RetryDue after so long. `probe`: the single try of a model that was given up."""

    after_s: float
    probe: bool


class CancelRetry(_Plain):
    """No next try."""


class RecordGivenUp(_CodeAndText):
    """Record why there will be probes only."""


class Finish(_Plain):
    """The instance has ended on purpose; it can be removed."""


Action = (
    QueueLoad | StartProcess | AnnounceReady | RecordLoadFailure | StopRouting | StartDrain | StartOffload
    | AnnounceOffloaded | StartRestore | AnnounceRestored | RecordMoveFailure | Condemn | ExpectExit
    | Kill | RecordUnkillable | ScheduleRetry | CancelRetry | RecordGivenUp | Finish
)  # fmt: skip
