"""The words of lifecycle.py: the states of an instance, what can happen to it, what can be done about it.

Events and actions are values; nothing here decides. The theory stands in lifecycle.py.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, Final

from mmsup.supervisor.processes.backoff import NextTry


class InstanceState(enum.StrEnum):
    """What is true of an instance."""

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
    """What is wanted of an instance, and what is true."""

    wanted: bool = False
    state: InstanceState = InstanceState.ABSENT


# Events.


@dataclass(frozen=True, slots=True)
class WantUp:
    """People want it to serve."""


@dataclass(frozen=True, slots=True)
class WantDown:
    """People want it gone, gently."""


@dataclass(frozen=True, slots=True)
class LoadAdmitted:
    """Its turn among the loads has come."""


@dataclass(frozen=True, slots=True)
class ProcessStarted:
    """The keeper has started the process."""


@dataclass(frozen=True, slots=True)
class StartFailed:
    """The keeper could not; `next` is restart.py's decision."""

    next: NextTry


@dataclass(frozen=True, slots=True)
class LoadProgressed:
    """The worker says how far its load is."""

    warming: bool


@dataclass(frozen=True, slots=True)
class BecameReady:
    """The worker says that it serves."""


@dataclass(frozen=True, slots=True)
class LoadReportedFailed:
    """The worker says why its model cannot be loaded; it is about to leave."""

    code: str
    text: str


@dataclass(frozen=True, slots=True)
class CrashReported:
    """Its crash pipe spoke: the exit follows as soon as the kernel has torn it down."""

    code: str
    text: str


@dataclass(frozen=True, slots=True)
class ProcessExited:
    """It is dead and reaped; `next` is restart.py's decision, should it be wanted."""

    next: NextTry


@dataclass(frozen=True, slots=True)
class HangDetected:
    """health.py's verdict on a worker that serves."""

    text: str


@dataclass(frozen=True, slots=True)
class LoadTimedOut:
    """health.py's verdict on a worker that loads."""

    text: str


@dataclass(frozen=True, slots=True)
class ProtocolViolated:
    """It broke the protocol, or closed its channel."""

    text: str


@dataclass(frozen=True, slots=True)
class OutOfMemory:
    """The kernel took something of its group for memory, itself or a child of it."""

    text: str


@dataclass(frozen=True, slots=True)
class ExitOverdue:
    """It should have left by now."""


@dataclass(frozen=True, slots=True)
class Unkillable:
    """SIGKILL was sent long ago, and it is still there: the kernel holds it."""


@dataclass(frozen=True, slots=True)
class RetryDue:
    """The time of the next try has come."""


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
    """Stand in the queue of loads."""


@dataclass(frozen=True, slots=True)
class StartProcess:
    """Start a process: the next generation."""


@dataclass(frozen=True, slots=True)
class AnnounceReady:
    """Link it to the gateways as soon as its content is the one that serves."""


@dataclass(frozen=True, slots=True)
class RecordLoadFailure:
    """Write down why the load failed."""

    code: str
    text: str


@dataclass(frozen=True, slots=True)
class StopRouting:
    """Let the gateways route nothing more to it."""


@dataclass(frozen=True, slots=True)
class StartDrain:
    """When the gateways have heard: tell the worker to finish and leave."""


@dataclass(frozen=True, slots=True)
class Condemn:
    """Tell the gateways that it is about to die, so that they answer or retry now."""

    code: str
    text: str


@dataclass(frozen=True, slots=True)
class ExpectExit:
    """Give it a moment to leave by itself."""


@dataclass(frozen=True, slots=True)
class Kill:
    """SIGKILL, when the gateways have heard."""


@dataclass(frozen=True, slots=True)
class RecordUnkillable:
    """Write down that nothing waits for it any more."""


@dataclass(frozen=True, slots=True)
class ScheduleRetry:
    """RetryDue after so long. `probe`: that try is a half-open one."""

    after_s: float
    probe: bool


@dataclass(frozen=True, slots=True)
class CancelRetry:
    """There will be no next try."""


@dataclass(frozen=True, slots=True)
class RecordGivenUp:
    """Write down why there will be probes only."""

    code: str
    text: str


@dataclass(frozen=True, slots=True)
class Finish:
    """The instance has ended on purpose; forget it."""


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
