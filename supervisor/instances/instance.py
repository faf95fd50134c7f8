"""One instance of a model version: the shell of the state machine in lifecycle.py, with all facts beside its state.

Every event enters through `Instance.apply`, which runs the machine and performs the resulting actions. This file only
holds state. Events come from the keeper (worker_exit.py, worker_messages.py), from the worker (worker_messages.py) and
from probes and timers (actions.py); what concerns many instances is decided in models/model_set.py.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from mmsup.ipc.paths import WorkerId
from mmsup.ipc.specs import Metadata, ModelSpec
from mmsup.supervisor.instances import lifecycle, restart_policy
from mmsup.supervisor.instances.context import InstanceContext, WorkerEndpoint, WorkerFailure
from mmsup.supervisor.instances.lifecycle_events import ALIVE, Action, Event, InstanceState, Situation
from mmsup.supervisor.instances.liveness import FirstRuns
from mmsup.supervisor.instances.restart_policy import NextTry
from mmsup.supervisor.instances.worker_process import WorkerProcess
from mmsup.supervisor.observability import event_log
from mmsup.supervisor.processes.backoff import MAX_EXITS, Exit
from mmsup.supervisor.processes.child_process import ChildProcess
from mmsup.supervisor.processes.launch_spec import FORKED

TRANSITIONS_KEPT: Final = 12


@dataclass(slots=True, eq=False)
class VersionRevision:
    spec: ModelSpec
    metadata: Metadata | None = None
    """None until one of its workers was ready."""
    can_offload: bool = False
    """Its workers can move their models out of memory and back."""
    restored_s: float = 0.0
    """When one was last moved back; 0: never."""
    exits: list[Exit] = field(default_factory=list["Exit"])
    instances: list[Instance] = field(default_factory=list["Instance"])
    first_runs: FirstRuns = field(default_factory=FirstRuns)

    def is_serving(self) -> bool:
        return any(each.state is InstanceState.READY for each in self.instances) or bool(self.spec.steps)

    def is_fully_ready(self) -> bool:
        return all(each.state is InstanceState.READY for each in self.instances)

    def load_failure(self) -> WorkerFailure | None:
        return next((each.load_failure for each in self.instances if each.load_failure), None)

    def next_try(self, last: Exit, rng: random.Random, load_code: str = "") -> NextTry:
        """Records an exit that was a failure, and decides what follows it. `load_code`: of the load that failed."""
        instances = len(self.instances)
        self.exits.append(last)
        del self.exits[: -MAX_EXITS * instances]
        return restart_policy.next_try(self.exits, last.at_s, rng, instances, load_code)


@dataclass(frozen=True, slots=True)
class InstanceHooks:
    """What lies above an instance and has to know of it. The same for all instances."""

    perform: Callable[[Instance, Action], None]
    """Performs one action (actions.py)."""
    on_change: Callable[[Instance], None]
    """State or facts have changed."""
    on_progress: Callable[[Instance, str], None]
    """How far the load is, in words."""
    require_memory: Callable[[Instance], None]
    """Raises MemoryRefused if its worker, which is about to start, has no room."""
    is_awaited: Callable[[Instance], bool]
    """Requests wait for its load."""
    start_bound_s: Callable[[Instance], float]
    """How long its worker may be kept from the processor by those who serve while it starts; 0: not at all."""
    on_ready: Callable[[Instance], None]
    """It is ready; it is linked to the gateways if its revision is the active one."""
    on_moved: Callable[[Instance, float], None]
    """Its model was offloaded or restored, as its state says, in so many seconds."""
    on_move_failed: Callable[[Instance, str], None]
    """Its model could not be offloaded or restored, and why."""


@dataclass(slots=True)
class ScheduledRetry:
    at_s: float = 0.0
    is_probe: bool = False
    timer: asyncio.TimerHandle | None = None


class Instance:
    """One worker slot of a model version; over time many worker processes, numbered by generation."""

    def __init__(self, number: int, revision: VersionRevision, context: InstanceContext, hooks: InstanceHooks) -> None:
        self.id = number
        self.revision = revision
        self.context = context
        self.situation = Situation()
        self.generation = 0
        self.worker: WorkerProcess | None = None
        """Invariant: there is one exactly in the states ALIVE."""
        self.start = ""
        """How its last worker was started, and why so."""
        self.is_queued = False
        """It waits for its turn to load."""
        self.retry = ScheduledRetry()
        self.failure: WorkerFailure | None = None
        """Why it is not ready, as the callers of its model get it; None while all is well."""
        self.transitions: deque[str] = deque(maxlen=TRANSITIONS_KEPT)
        self.hooks = hooks

    @property
    def state(self) -> InstanceState:
        """The actual state; what is wanted is `situation.wanted`."""
        return self.situation.state

    @property
    def worker_id(self) -> WorkerId:
        return self.id, self.generation

    @property
    def process(self) -> ChildProcess | None:
        """The worker's process, once the keeper has started it."""
        return self.worker.process if self.worker else None

    @property
    def load_failure(self) -> WorkerFailure | None:
        """Why the last load failed, if none has succeeded since."""
        return self.failure if self.failure and self.failure.of_load else None

    @property
    def is_forked(self) -> bool:
        """Its last worker was forked of a zygote."""
        return self.start.startswith(FORKED)

    def expects_fork(self) -> bool:
        """Its worker is forked, or the next one is to be if it has none."""
        if self.revision.spec.group or (self.worker is not None and self.start):
            return self.is_forked
        return bool(self.context.starts.choose(self.revision.spec, may_wait=True).zygote)

    def can_be_stopped(self) -> bool:
        """Whether there is a process, or will be, that has not survived SIGKILL."""
        return self.state in ALIVE and self.state is not InstanceState.QUARANTINED

    def require_worker(self) -> WorkerProcess:
        """The worker; the state guarantees that there is one."""
        assert self.worker is not None, f"instance {self.id} has no worker in state {self.state}"
        return self.worker

    def endpoint(self) -> WorkerEndpoint:
        assert self.process is not None, f"instance {self.id} serves without a process"
        assert self.revision.metadata is not None, f"instance {self.id} serves without metadata"
        address = self.zeromq_address()
        return WorkerEndpoint(
            self.id, self.generation, address, self.revision.spec, self.revision.metadata, self.process
        )

    def zeromq_address(self) -> str:
        """Where its worker binds its ZeroMQ socket; empty if its requests use socket pairs, as those of groups do."""
        return "" if self.revision.spec.group else self.context.zeromq_address(self.worker_id)

    def apply(self, event: Event) -> None:
        """Runs the state machine on an event and performs the actions."""
        before = self.situation
        spec = self.revision.spec
        name = f"{spec.name}/{spec.version}#{self.id}.{self.generation}"
        self.situation, actions = lifecycle.step(before, event, name, self.transitions)
        self.transitions.append(f"{type(event).__name__}: {before.state} -> {self.state}")
        if self.state is InstanceState.STOPPING and self.worker and self.worker.watches.liveness:
            self.worker.watches.liveness.close()
        for action in actions:
            self.hooks.perform(self, action)
        if actions or self.situation != before:
            self.hooks.on_change(self)

    def record(self, name: str, text: str, **fields: Any) -> event_log.Event:  # JSON, as the event log takes it
        spec = self.revision.spec
        return self.context.event_log.record(
            name, text, model=spec.name, instance=self.id, generation=self.generation, version=spec.version, **fields
        )

    def report_progress(self, text: str) -> None:
        self.hooks.on_progress(self, text)


def for_this_worker(instance: Instance, act: Callable[[Instance], None]) -> Callable[[], None]:
    """A callback that does nothing if the instance has another worker by then, or none."""
    worker_id = instance.worker_id

    def act_if_same() -> None:
        if instance.worker is not None and instance.worker_id == worker_id:
            act(instance)

    return act_if_same
