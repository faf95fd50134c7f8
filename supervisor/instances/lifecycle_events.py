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
    DRAINING = "draining"
    STOPPING = "stopping"
    QUARANTINED = "quarantined"
    BACKOFF = "backoff"
    FAILED = "failed"
    STOPPED = "stopped"


STARTING_UP: Final = frozenset({InstanceState.STARTING, InstanceState.LOADING, InstanceState.WARMING})
ALIVE: Final = STARTING_UP | {
    InstanceState.READY,
    InstanceState.DRAINING,
    InstanceState.STOPPING,
    InstanceState.QUARANTINED,
}
"""States in which there is a process."""


@dataclass(frozen=True, slots=True)
class Situation:
    wanted: bool = False
    state: InstanceState = InstanceState.ABSENT


# Events.


@dataclass(frozen=True, slots=True)
class WantUp:
    """It shall serve."""


@dataclass(frozen=True, slots=True)
class WantDown:
    """It shall drain and stop."""


@dataclass(frozen=True, slots=True)
class LoadAdmitted:
    """It may load now."""


@dataclass(frozen=True, slots=True)
class ProcessStarted:
    """The keeper has started the process."""


@dataclass(frozen=True, slots=True)
class StartFailed:
    """The process could not be started; `next` is the decision of the restart policy."""

    next: NextTry


@dataclass(frozen=True, slots=True)
class LoadProgressed:
    """The worker reports how far its load is."""

    is_warm_up: bool


@dataclass(frozen=True, slots=True)
class BecameReady:
    """The worker reports that it is ready."""


@dataclass(frozen=True, slots=True)
class LoadReportedFailed:
    """The worker reports why its model cannot be loaded; it is about to exit."""

    code: str
    text: str


@dataclass(frozen=True, slots=True)
class CrashReported:
    """faulthandler has written to the crash pipe: the exit follows when the kernel has torn the process down."""

    code: str
    text: str


@dataclass(frozen=True, slots=True)
class ProcessExited:
    """The process is dead and reaped; `next` is the decision of the restart policy, should it be wanted."""

    next: NextTry


@dataclass(frozen=True, slots=True)
class HangDetected:
    """The liveness probe found no progress in a worker that is ready."""

    text: str


@dataclass(frozen=True, slots=True)
class LoadTimedOut:
    """The liveness probe found that a load exceeds its limit."""

    text: str


@dataclass(frozen=True, slots=True)
class ProtocolViolated:
    """The worker broke the protocol, or closed its channel."""

    text: str


@dataclass(frozen=True, slots=True)
class OutOfMemory:
    """The kernel killed a process of its control group for memory: the worker or a child of it."""

    text: str


@dataclass(frozen=True, slots=True)
class ExitOverdue:
    """The process should have exited by now."""


@dataclass(frozen=True, slots=True)
class Unkillable:
    """SIGKILL has not ended the process in time: it is blocked in the kernel."""


@dataclass(frozen=True, slots=True)
class RetryDue:
    """It is time for the next try."""


Event = (
    WantUp
    | WantDown
    | LoadAdmitted
    | ProcessStarted
    | StartFailed
    | LoadProgressed
    | BecameReady
    | LoadReportedFailed
    | CrashReported
    | ProcessExited
    | HangDetected
    | LoadTimedOut
    | ProtocolViolated
    | OutOfMemory
    | ExitOverdue
    | Unkillable
    | RetryDue
)
EVENTS: Final[tuple[type[Any], ...]] = Event.__args__  # the union's own list


# Actions.


@dataclass(frozen=True, slots=True)
class QueueLoad:
    """Wait for a turn to load."""


@dataclass(frozen=True, slots=True)
class StartProcess:
    """Start a process: the next generation."""


@dataclass(frozen=True, slots=True)
class AnnounceReady:
    """It is ready: link it to the gateways if its revision is active."""


@dataclass(frozen=True, slots=True)
class RecordLoadFailure:
    code: str
    text: str


@dataclass(frozen=True, slots=True)
class StopRouting:
    """Let the gateways send it no more requests."""


@dataclass(frozen=True, slots=True)
class StartDrain:
    """When the gateways have applied that: tell the worker to finish and exit."""


@dataclass(frozen=True, slots=True)
class Condemn:
    """Tell the gateways that it is about to be killed, so that they answer or retry its requests now."""

    code: str
    text: str


@dataclass(frozen=True, slots=True)
class ExpectExit:
    """Give it a moment to exit by itself."""


@dataclass(frozen=True, slots=True)
class Kill:
    """SIGKILL, once the gateways have applied what was sent before."""


@dataclass(frozen=True, slots=True)
class RecordUnkillable:
    """Record that nothing waits for it any more."""


@dataclass(frozen=True, slots=True)
class ScheduleRetry:
    """RetryDue after so long. `probe`: the single try of a model that was given up."""

    after_s: float
    probe: bool


@dataclass(frozen=True, slots=True)
class CancelRetry:
    """No next try."""


@dataclass(frozen=True, slots=True)
class RecordGivenUp:
    """Record why there will be probes only."""

    code: str
    text: str


@dataclass(frozen=True, slots=True)
class Finish:
    """The instance has ended on purpose; it can be removed."""


Action = (
    QueueLoad
    | StartProcess
    | AnnounceReady
    | RecordLoadFailure
    | StopRouting
    | StartDrain
    | Condemn
    | ExpectExit
    | Kill
    | RecordUnkillable
    | ScheduleRetry
    | CancelRetry
    | RecordGivenUp
    | Finish
)
