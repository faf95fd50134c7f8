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
from mmsup.supervisor.observability.event_log import Journal
from mmsup.supervisor.observability.model_output import Logbook
from mmsup.supervisor.processes.child_process import Life
from mmsup.supervisor.processes.cleanup import Graves
from mmsup.supervisor.processes.launch_spec import Place

if TYPE_CHECKING:
    from mmsup.supervisor.instances.instance import Instance
    from mmsup.supervisor.postmortem.collector import Forensics

LifeKey = tuple[int, int]
"""Instance and generation."""


@dataclass(frozen=True, slots=True)
class Serving:
    """A life that gateways may route to."""

    instance: int
    generation: int
    address: str
    spec: ModelSpec
    metadata: Metadata
    life: Life

    @property
    def key(self) -> LifeKey:
        """Instance and generation."""
        return self.instance, self.generation


@dataclass(frozen=True, slots=True)
class Judgement:
    """What gateways answer to the callers of a life that ended, or is about to."""

    code: str
    text: str
    retryable: bool = True
    of_load: bool = False
    """It is about a load that failed; `code` and `text` are then for whoever asked for the load."""


class Fronts(Protocol):
    """The gateways, as the instances see them."""

    def link(self, serving: Serving) -> None:
        """Route to this life."""
        ...

    def unlink(self, key: LifeKey) -> None:
        """Route nothing more to it."""
        ...

    def condemn(self, key: LifeKey, judgement: Judgement) -> None:
        """It is about to be killed."""
        ...

    def buried(self, key: LifeKey, judgement: Judgement) -> None:
        """It is dead, and this is why."""
        ...

    def barrier(self, limit_s: float, then: Callable[[], None]) -> None:
        """Call `then` once, when all gateways have done what was said so far, or after the limit."""
        ...


class Placement(Protocol):
    """The GPUs, as the instances see them."""

    def holds(self, instance: Instance) -> bool:
        """Whether its load has to wait for memory of one."""
        ...

    def place(self, instance: Instance) -> str:
        """CUDA_VISIBLE_DEVICES for it; gpu.NoGpu if that cannot be had now."""
        ...

    def serves(self, instance: Instance) -> None:
        """It is ready."""
        ...

    def faulted(self, instance: Instance) -> None:
        """It left with a GPU fault."""
        ...

    def ended(self, instance: Instance) -> None:
        """Its process is gone."""
        ...


class KeeperSays(Protocol):
    """The keeper, as everybody sees it."""

    def say(self, message: object, descriptors: Sequence[int] = ()) -> None:
        """Send one message of TO_KEEPER."""
        ...


@dataclass(frozen=True, slots=True)
class Site:
    """One per brain."""

    settings: Settings
    place: Place
    keeper: KeeperSays
    gateways: Fronts
    cgroups: CgroupBackend
    journal: Journal
    logbook: Callable[[str], Logbook]
    graves: Graves
    forensics: Forensics
    devices: Placement
    rng: random.Random
    changed: Callable[[Instance], None]
    """Something about it is not as it was; looked at once this turn of the loop is over."""
    progress: Callable[[Instance, str], None]
    """How far its load is, in words."""
    ready: Callable[[Instance], None]
    """It serves; whether it is linked depends on whose content is in force."""

    def link_address(self, key: LifeKey) -> str:
        """Where a life binds its ZeroMQ socket; empty if requests come over pairs."""
        return worker_socket(self.settings.runtime_dir, *key) if self.settings.link == "zeromq" else ""
