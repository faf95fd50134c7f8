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


class LoadAdmitted(_Plain):
    """It may load now."""


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
    """The worker reports why its model cannot be loaded; it is about to exit."""


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
    WantUp | WantDown | LoadAdmitted | ProcessStarted | StartFailed | LoadProgressed | BecameReady
    | LoadReportedFailed | CrashReported | ProcessExited | HangDetected | LoadTimedOut | ProtocolViolated
    | OutOfMemory | GpuMemoryExceeded | ExitOverdue | Unkillable | RetryDue
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
    QueueLoad | StartProcess | AnnounceReady | RecordLoadFailure | StopRouting | StartDrain | Condemn
    | ExpectExit | Kill | RecordUnkillable | ScheduleRetry | CancelRetry | RecordGivenUp | Finish
)  # fmt: skip
