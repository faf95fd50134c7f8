"""What an instance acts upon: the keeper, the gateways, the books. Handed to each as one object."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from mmsup.ipc.paths import worker_socket
from mmsup.ipc.specs import Metadata, ModelSpec
from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.linux.cgroup_backend import CgroupBackend
from mmsup.supervisor.observability.event_log import EventLog
from mmsup.supervisor.observability.model_output import ModelOutput
from mmsup.supervisor.processes.child_process import ChildProcess
from mmsup.supervisor.processes.cleanup import Cleanup
from mmsup.supervisor.processes.launch_spec import LaunchEnvironment

if TYPE_CHECKING:
    from mmsup.supervisor.instances.instance import Instance
    from mmsup.supervisor.postmortem.collector import CrashCollector

WorkerId = tuple[int, int]
"""Instance and generation."""


@dataclass(frozen=True, slots=True)
class WorkerEndpoint:
    """A life that gateways may route to."""

    instance: int
    generation: int
    address: str
    spec: ModelSpec
    metadata: Metadata
    process: ChildProcess

    @property
    def worker_id(self) -> WorkerId:
        """Instance and generation."""
        return self.instance, self.generation


@dataclass(frozen=True, slots=True)
class WorkerFailure:
    """What gateways answer to the callers of a life that ended, or is about to."""

    code: str
    text: str
    retryable: bool = True
    of_load: bool = False
    """It is about a load that failed; `code` and `text` are then for whoever asked for the load."""


class WorkerRouting(Protocol):
    """The gateways, as the instances see them."""

    def link(self, serving: WorkerEndpoint) -> None:
        """Route to this life."""
        ...

    def unlink(self, key: WorkerId) -> None:
        """Route nothing more to it."""
        ...

    def condemn(self, key: WorkerId, judgement: WorkerFailure) -> None:
        """It is about to be killed."""
        ...

    def verdict(self, key: WorkerId, judgement: WorkerFailure) -> None:
        """It is dead, and this is why."""
        ...

    def barrier(self, limit_s: float, on_done: Callable[[], None]) -> None:
        """Call `then` once, when all gateways have done what was said so far, or after the limit."""
        ...


class DevicePlacement(Protocol):
    """The GPUs, as the instances see them."""

    def must_wait(self, instance: Instance) -> bool:
        """Whether its load has to wait for memory of one."""
        ...

    def assign(self, instance: Instance) -> str:
        """CUDA_VISIBLE_DEVICES for it; gpu.NoGpu if that cannot be had now."""
        ...

    def on_ready(self, instance: Instance) -> None:
        """It is ready."""
        ...

    def on_fault(self, instance: Instance) -> None:
        """It left with a GPU fault."""
        ...

    def on_exit(self, instance: Instance) -> None:
        """Its process is gone."""
        ...


class KeeperSender(Protocol):
    """The keeper, as everybody sees it."""

    def send(self, message: object, descriptors: Sequence[int] = ()) -> None:
        """Send one message of TO_KEEPER."""
        ...


@dataclass(frozen=True, slots=True)
class InstanceContext:
    """One per brain."""

    settings: Settings
    launch_environment: LaunchEnvironment
    keeper: KeeperSender
    gateways: WorkerRouting
    cgroups: CgroupBackend
    event_log: EventLog
    model_output: Callable[[str], ModelOutput]
    cleanup: Cleanup
    crash_collector: CrashCollector
    devices: DevicePlacement
    rng: random.Random
    on_change: Callable[[Instance], None]
    """Something about it is not as it was; looked at once this turn of the loop is over."""
    on_progress: Callable[[Instance, str], None]
    """How far its load is, in words."""
    on_ready: Callable[[Instance], None]
    """It serves; whether it is linked depends on whose content is in force."""

    def zeromq_address(self, key: WorkerId) -> str:
        """Where a life binds its ZeroMQ socket; empty if requests come over pairs."""
        return worker_socket(self.settings.runtime_dir, *key) if self.settings.link == "zeromq" else ""
