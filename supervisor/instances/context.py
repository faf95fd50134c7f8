"""What instances depend on: keeper, gateways, GPUs, control groups, logs; passed to each of them as one object.

The protocols state what instances need of parts that lie above them. None of them knows the class Instance.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from mmsup.ipc.errors import AWAITING_ROOM
from mmsup.ipc.paths import WorkerId, worker_socket
from mmsup.ipc.specs import Metadata, ModelSpec
from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.gpu.memory_release import GpuUsage
from mmsup.supervisor.linux.cgroup_backend import CgroupBackend
from mmsup.supervisor.observability.event_log import EventLog
from mmsup.supervisor.observability.model_output import ModelOutput
from mmsup.supervisor.postmortem.collector import CrashCollector
from mmsup.supervisor.processes.child_process import ChildProcess
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
    retryable: bool = True
    of_load: bool = False
    """A load failed; `code` and `text` then answer the load request."""
    detail: str = ""
    """For the operator alone: where the model's code raised, or the last line that the worker printed."""

    @property
    def request_code(self) -> str:
        """The code that requests to the model are answered with."""
        return "model_failed" if self.of_load and self.code not in AWAITING_ROOM else self.code

    @property
    def operator_text(self) -> str:
        return f"{self.text} ({self.detail})" if self.detail else self.text


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

    def assign(self, instance: int, spec: ModelSpec) -> str:
        """The device of a worker that is about to start; NoGpu if there is none for it now."""

    def on_ready(self, device: str) -> None:
        """A worker there is ready."""

    def on_fault(self, device: str, model: str) -> None:
        """A worker there exited with a GPU fault."""

    def on_exit(self, device: str, pid: int, usage: GpuUsage) -> None:
        """A worker there is gone, and its memory is to come back."""


class WorkerStarts(Protocol):
    """The zygotes, as instances see them."""

    def choose(self, spec: ModelSpec) -> StartMethod:
        """How the worker that is about to start is started."""

    def learn(self, spec: ModelSpec, imported: Iterable[str]) -> None:
        """A worker is ready, and its interpreter has imported these."""

    def renew(self) -> None:
        """The code of the server was changed: workers are forked of processes that have imported it."""


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
    refuse_start: Callable[[], str]
    """Why the worker that is about to start has no room among the open files; empty if it has."""
    rng: random.Random

    def zeromq_address(self, worker: WorkerId) -> str:
        """Where a worker binds its ZeroMQ socket; empty if requests use socket pairs."""
        return worker_socket(self.settings.runtime_dir, *worker) if self.settings.link == "zeromq" else ""
