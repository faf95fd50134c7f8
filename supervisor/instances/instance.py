"""One instance: lifecycle.py's machine with its facts beside it. Events come in here and nowhere else.

Decides nothing: what an event means stands in lifecycle.py, when to try again in restart.py, why it died in cause.py.
Who else has a part: ears.py hears its process, hands.py carries actions out, fleet.py decides what many instances
decide together (turns among the loads, whose content is in force).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Any, Final

from mmsup.ipc.failpoints import failpoint
from mmsup.ipc.messages.keeper_control import ChildExited, ForgetChild
from mmsup.ipc.paths import worker_socket
from mmsup.supervisor.instances import actions as hands
from mmsup.supervisor.instances import exit_evidence, lifecycle, lifecycle_events
from mmsup.supervisor.instances.context import InstanceContext, WorkerEndpoint, WorkerFailure, WorkerId
from mmsup.supervisor.instances.exit_evidence import WorkerExit
from mmsup.supervisor.instances.lifecycle_events import ALIVE, InstanceState, Situation
from mmsup.supervisor.instances.revision import VersionRevision
from mmsup.supervisor.instances.worker_messages import WorkerMessages
from mmsup.supervisor.instances.worker_process import WorkerProcess
from mmsup.supervisor.observability.event_log import Event
from mmsup.supervisor.postmortem.in_flight import InFlightSummary
from mmsup.supervisor.processes import backoff
from mmsup.supervisor.processes.child_process import ChildProcess
from mmsup.supervisor.processes.launch_spec import scratch_dir, worker_token

TRANSITIONS_KEPT: Final = 12


class Instance:
    """One worker slot of a model version."""

    def __init__(self, number: int, release: VersionRevision, site: InstanceContext) -> None:
        self.id = number
        self.revision = release
        self.context = site
        self.situation = Situation()
        self.generation = 0
        self.worker: WorkerProcess | None = None
        """Invariant: there is one exactly in the states ALIVE."""
        self.is_queued = False
        """It stands in the queue of loads."""
        self.is_probe = False
        self.retry_at_s = 0.0
        self.retry_timer: asyncio.TimerHandle | None = None
        self.failure: WorkerFailure | None = None
        """Why it is not up, as its model's callers get it; None while all is well."""
        self.transitions: deque[str] = deque(maxlen=TRANSITIONS_KEPT)

    @property
    def state(self) -> InstanceState:
        """What is true."""
        return self.situation.state

    @property
    def worker_id(self) -> WorkerId:
        """This life among all."""
        return self.id, self.generation

    @property
    def process(self) -> ChildProcess | None:
        """The process, while there is one that we know."""
        return self.worker.process if self.worker else None

    @property
    def load_failure(self) -> WorkerFailure | None:
        """Why its last load failed, if that is how things stand."""
        return self.failure if self.failure and self.failure.of_load else None

    def endpoint(self) -> WorkerEndpoint:
        """What the gateways need to know of this life."""
        assert self.process is not None, f"instance {self.id} serves without a process"
        assert self.revision.metadata is not None, f"instance {self.id} serves without metadata"
        address = self.context.zeromq_address(self.worker_id)
        return WorkerEndpoint(
            self.id, self.generation, address, self.revision.spec, self.revision.metadata, self.process
        )

    def apply(self, event: lifecycle_events.Event) -> None:
        """Something happened: step, act, let the fleet know."""
        before = self.situation
        spec = self.revision.spec
        who = f"{spec.name}/{spec.version}#{self.id}.{self.generation}"
        self.situation, actions = lifecycle.step(before, event, who, self.transitions)
        self.transitions.append(f"{type(event).__name__}: {before.state} -> {self.state}")
        if self.state is InstanceState.STOPPING and self.worker and self.worker.liveness_probe:
            self.worker.liveness_probe.close()
        for action in actions:
            hands.perform(self, action)
        if actions or self.situation != before:
            self.context.on_change(self)

    def started(self, pid: int, descriptors: list[int]) -> None:
        """The keeper has started its process, or gives it to a new brain."""
        assert self.worker is not None, f"instance {self.id} was not to be started"
        self.worker.process = ChildProcess(worker_token(*self.worker_id), pid, descriptors, WorkerMessages(self))
        self.worker.artifact_digest = self.context.crash_collector.artifact_digest(self.revision.spec)
        hands.start_liveness_probe(self, self.worker.process)
        hands.watch_oom(self)
        failpoint("brain.adopted")

    def start_failed(self, text: str, code: str = "load_failed") -> None:
        """Its process could not be started. With a code of its device's nothing is counted against its model: it is
        tried again when the device is as it was, at the latest as late as one that was given up."""
        self.failure = WorkerFailure(code, f"the worker could not be started: {text}", of_load=True)
        self.record("load_failed", self.failure.text, code=code)
        is_own = code == "load_failed"
        decision = self._next_try(served_s=0.0) if is_own else backoff.Retry(backoff.PROBE_AFTER_S)
        self._clean_up()
        self.apply(lifecycle_events.StartFailed(decision))

    def exited(self, exited: ChildExited) -> None:
        """Its process is dead and reaped: hear it out, tell the gateways why, then everybody else."""
        tenure = self.worker
        assert tenure is not None, f"instance {self.id} has nothing that could end"
        failpoint("brain.ended")
        if tenure.process is not None:
            tenure.process.drain_and_close()
            tenure.infer_ready()
        logbook = self.context.model_output(self.revision.spec.name)
        loss = self.context.crash_collector.in_flight(self.worker_id)
        in_flight = loss.in_flight if loss.is_complete or not tenure.is_linked else None
        death = exit_evidence.collect(self.revision.spec, tenure, exited, logbook.finish(self.output_name), in_flight)
        if tenure.is_linked:
            self.context.gateways.verdict(self.worker_id, death.failure)
        if tenure.was_requested(exited):
            self.record("worker_stopped", "stopped as it was told to", pid=exited.pid)
            decision: backoff.NextTry = backoff.Retry(0.0)
        else:
            decision = self._record_crash(tenure, death, loss)
        self.context.keeper.send(ForgetChild(exited.token))
        failpoint("brain.buried")
        self._clean_up()
        self.apply(lifecycle_events.ProcessExited(decision))

    def vanished(self) -> None:
        """Its process is gone and nobody will tell how: an earlier brain had heard it, and is dead itself."""
        self._clean_up()
        self.apply(lifecycle_events.ProcessExited(backoff.Retry(0.0)))

    def record(self, name: str, text: str, **fields: Any) -> Event:  # JSON, as the journal takes it
        """Write an event about this life down."""
        spec = self.revision.spec
        return self.context.event_log.record(
            name,
            text,
            model=spec.name,
            instance=self.id,
            generation=self.generation,
            version=spec.version,
            **fields,
        )

    @property
    def output_name(self) -> str:
        """This life in its model's logbook."""
        return f"{self.id}.{self.generation}"

    def _record_crash(self, tenure: WorkerProcess, death: WorkerExit, loss: InFlightSummary) -> backoff.NextTry:
        """A death that nobody asked for: what its model's callers get now, what follows, one event."""
        if not tenure.ready_s and tenure.load_failure is None:
            self.failure = death.load_failure
        elif tenure.load_failure is None:
            self.failure = WorkerFailure("model_restarting", death.failure.text)
        served_s = time.monotonic() - tenure.ready_s if tenure.ready_s else 0.0
        decision = self._next_try(served_s)
        follows = round(decision.after_s, 3) if isinstance(decision, backoff.Retry) else None
        event = self.record(
            "worker_exit",
            death.cause.detail,
            **death.event_fields(),
            requests=loss.ids(),
            restart=self.generation,
            next_delay_s=follows,
        )
        given_up = decision.reason if isinstance(decision, backoff.GiveUp) else ""
        case = exit_evidence.crash_record(self, death, event["time"], follows, given_up)
        self.context.crash_collector.collect(case, tenure.artifact_digest)
        if death.cause.code == "gpu_fault":
            self.context.devices.on_fault(self)
        return decision

    def _next_try(self, served_s: float) -> backoff.NextTry:
        now_s = time.monotonic()
        ends = self.revision.exits
        ends.append(backoff.Exit(now_s, served_s, self.is_probe))
        instances = len(self.revision.instances)
        del ends[: -backoff.MAX_EXITS * instances]
        self.is_probe = False
        return backoff.next_try(ends, now_s, self.context.rng, instances)

    def _clean_up(self) -> None:
        tenure = self.worker
        assert tenure is not None, f"instance {self.id} has nothing to bury"
        self.context.devices.on_exit(self)
        tenure.close()
        scratch = scratch_dir(self.context.launch_environment, self.worker_id)
        socket = worker_socket(self.context.settings.runtime_dir, self.id, self.generation)
        self.context.cleanup.add(tenure.group, scratch, socket)
        self.worker = None

    def is_alive(self) -> bool:
        """Whether there is a process, or one is being started."""
        return self.state in ALIVE

    def can_be_stopped(self) -> bool:
        """Whether somebody may wait for its end: it is alive, and can be ended."""
        return self.is_alive() and self.state is not InstanceState.QUARANTINED
