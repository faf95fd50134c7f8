"""What instances depend on: keeper, gateways, GPUs, control groups, logs; passed to each of them as one object.

The protocols state what instances need of parts that lie above them. None of them knows the class Instance.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from mmsup.ipc.errors import AWAITING_ROOM
from mmsup.ipc.paths import WorkerId, worker_socket
from mmsup.ipc.specs import Metadata, ModelSpec
from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.gpu.memory_release import GpuUsage
from mmsup.supervisor.linux.cgroup import Cgroup
from mmsup.supervisor.linux.cgroup_backend import CgroupBackend
from mmsup.supervisor.observability.event_log import EventLog
from mmsup.supervisor.observability.model_output import ModelOutput
from mmsup.supervisor.postmortem.collector import CrashCollector
from mmsup.supervisor.processes.child_process import ChildListener, ChildProcess
from mmsup.supervisor.processes.cleanup import Cleanup
from mmsup.supervisor.processes.launch_spec import LaunchEnvironment, StartMethod


@dataclass(frozen=True, slots=True)
class WorkerEndpoint:
    instance: int
    generation: int
    address: str
    spec: ModelSpec
    metadata: Metadata
    process: ChildProcess

    @property
    def worker_id(self) -> WorkerId:
        return self.instance, self.generation


@dataclass(frozen=True, slots=True)
class WorkerFailure:
    """Why a worker failed, as gateways answer it to the callers."""

    code: str
    text: str
    retryable: bool = False
    """Of a load: requests may be sent again, although `request_code` says otherwise."""
    of_load: bool = False
    """A load failed; `code` and `text` then answer the load request."""
    detail: str = ""
    """For the operator alone: where the model's code raised, or the last line that the worker printed."""
    was_started: bool = True
    """There was a process."""

    @property
    def has_no_room(self) -> bool:
        """Of a load: it was refused for want of room, now (AWAITING_ROOM) or for ever."""
        return self.of_load and (
            self.code in AWAITING_ROOM or (self.code == MemoryRefused.for_ever and not self.was_started)
        )

    @property
    def request_code(self) -> str:
        """The code that requests to the model are answered with."""
        return "model_failed" if self.of_load and not self.has_no_room else self.code

    @property
    def operator_text(self) -> str:
        return f"{self.text} ({self.detail})" if self.detail else self.text


class MemoryRefused(Exception):  # noqa: N818 - a refusal, of which somebody is told
    """A worker that is about to start has no room in memory. The text is for anybody, `advice` for the operator."""

    code = "insufficient_memory"
    for_ever = "does_not_fit"
    """The code where no other model that leaves makes room enough."""

    def __init__(self, text: str, advice: str, code: str = code) -> None:
        super().__init__(text)
        self.advice = advice
        self.code = code


class WorkerRouting(Protocol):
    """The gateways, as instances see them."""

    def link(self, endpoint: WorkerEndpoint) -> None:
        """Route to this worker."""

    def unlink(self, worker: WorkerId) -> None:
        """Send no more requests to it."""

    def condemn(self, worker: WorkerId, failure: WorkerFailure) -> None:
        """It is about to be killed: answer or retry its requests now."""

    def verdict(self, worker: WorkerId, failure: WorkerFailure) -> None:
        """It is dead, for this reason."""

    def barrier(self, limit_s: float, on_done: Callable[[], None]) -> None:
        """Call `on_done` once all gateways have applied everything sent so far, or after the limit."""


class DevicePlacement(Protocol):
    """The GPUs, as instances see them. `device` is what CUDA_VISIBLE_DEVICES of a worker holds; empty: the CPU."""

    def must_wait(self, instance: int, spec: ModelSpec, on_progress: Callable[[str], None]) -> bool:
        """Whether the load has to wait for GPU memory; `on_progress` is told once, in words."""

    def expected(self, spec: ModelSpec) -> str:
        """What `assign` would give now; empty if there is no GPU for it."""
        ...

    def assign(self, instance: int, spec: ModelSpec) -> str:
        """The device of a worker that is about to start; NoGpu if there is none for it now."""

    def limit(self, spec: ModelSpec, device: str, group: Cgroup) -> Mapping[str, str]:
        """Set the hard limits of device memory that there are; what the worker's environment needs for them."""

    def on_ready(self, device: str) -> None:
        """A worker there is ready."""

    def on_fault(self, device: str, model: str) -> None:
        """A worker there exited with a GPU fault."""

    def on_exit(self, device: str, pid: int, usage: GpuUsage) -> None:
        """A worker there is gone, and its memory is to come back."""


class WorkerStarts(Protocol):
    """The zygotes, as instances see them."""

    def choose(self, spec: ModelSpec, *, may_wait: bool) -> StartMethod:
        """How the worker that is about to start is started. `may_wait`: for a zygote that imports."""

    def learn(self, spec: ModelSpec, imported: Iterable[str], *, is_forked: bool) -> None:
        """A worker is ready, and its interpreter has imported these."""

    def refused(self, spec: ModelSpec) -> None:
        """A worker of this model was not forked when that was asked."""

    def renew(self) -> None:
        """The code of the server was changed: workers are forked of processes that have imported it."""


@dataclass(slots=True, eq=False)
class GroupMember:
    """An instance of a co-location group, as the process that it shares sees it."""

    worker: WorkerId
    spec: ModelSpec
    on_crash: Callable[[str, str], None]
    """The process ends for this, code and text."""
    on_oom: Callable[[], None]
    """The kernel killed a process of the group for memory."""
    on_start_failed: Callable[[str], None]


class SharedProcess(Protocol):
    """The process of a co-location group, as its members see it."""

    @property
    def group(self) -> Cgroup: ...
    @property
    def device(self) -> str: ...
    @property
    def has_exited(self) -> bool: ...
    @property
    def members(self) -> Mapping[WorkerId, GroupMember]: ...
    def adopt(self, worker: WorkerId, descriptors: list[int], listener: ChildListener) -> ChildProcess:
        """The member is in the table of the keeper."""
        ...

    def names_beside(self, worker: WorkerId) -> tuple[str, ...]:
        """The other members, as model/version."""
        ...

    def is_running(self, worker: WorkerId) -> bool:
        """Whether it is this member that runs, loads or is unloaded now."""
        ...

    def may_have_caused(self, worker: WorkerId) -> bool:
        """Whether what the process as a whole is ended for may be this member's doing: it runs, or none does."""
        ...

    def ended_by(self, worker: WorkerId) -> str:
        """Which other member ended the process, or had it when it ended; empty if none did, or it is not known."""
        ...

    def is_blamed(self, worker: WorkerId) -> bool:
        """Whether it is this member that ended the process, as far as that is known."""
        ...

    def ending(self, worker: WorkerId, code: str, text: str) -> None:
        """It is about to be killed for this member, with this reason: the others are told."""
        ...

    def leave(self, worker: WorkerId) -> None:
        """The member has exited, or the process has."""
        ...


class GroupProcesses(Protocol):
    """The co-location groups, as instances see them."""

    def join(self, member: GroupMember) -> SharedProcess:
        """The process in which a worker that is about to start will be; OSError or NoGpu if there can be none."""

    def rejoin(self, member: GroupMember, note: str) -> SharedProcess | None:
        """The process of a member that an earlier controller has started."""

    def retire(self, worker: WorkerId) -> None:
        """No other member joins the process of this one."""

    def names(self) -> set[str]:
        """Of their control groups and scratch directories."""
        ...

    def adopted(self) -> None:
        """All that an earlier controller has started is known."""


class KeeperSender(Protocol):
    def send(self, message: object, descriptors: Sequence[int] = ()) -> None:
        """Send one message of TO_KEEPER."""


@dataclass(frozen=True, slots=True)
class InstanceContext:
    """One per controller."""

    settings: Settings
    launch_environment: LaunchEnvironment
    keeper: KeeperSender
    gateways: WorkerRouting
    cgroups: CgroupBackend
    event_log: EventLog
    model_output: Callable[[str], ModelOutput]
    """The captured output of a model, by its name."""
    cleanup: Cleanup
    crash_collector: CrashCollector
    devices: DevicePlacement
    starts: WorkerStarts
    groups: GroupProcesses
    refuse_start: Callable[[], str]
    """Why the worker that is about to start has no room among the open files; empty if it has."""
    rng: random.Random

    def zeromq_address(self, worker: WorkerId) -> str:
        """Where a worker binds its ZeroMQ socket; empty if requests use socket pairs."""
        return worker_socket(self.settings.runtime_dir, *worker) if self.settings.link == "zeromq" else ""
