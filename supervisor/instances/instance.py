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

from mmsup.ipc.failpoints import faultpoint
from mmsup.ipc.messages import keeper_control
from mmsup.ipc.paths import worker_socket
from mmsup.supervisor.instances import actions as hands
from mmsup.supervisor.instances import exit_evidence, lifecycle, lifecycle_events
from mmsup.supervisor.instances.context import Judgement, LifeKey, Serving, Site
from mmsup.supervisor.instances.exit_evidence import Death
from mmsup.supervisor.instances.lifecycle_events import ALIVE, Situation, State
from mmsup.supervisor.instances.revision import Release
from mmsup.supervisor.instances.worker_messages import WorkerEars
from mmsup.supervisor.instances.worker_process import Tenure
from mmsup.supervisor.observability.event_log import Event
from mmsup.supervisor.postmortem.in_flight import Loss
from mmsup.supervisor.processes import backoff
from mmsup.supervisor.processes.child_process import Life
from mmsup.supervisor.processes.launch_spec import scratch_of, worker_token

STORY: Final = 12


class Instance:
    """One worker slot of a model version."""

    def __init__(self, number: int, release: Release, site: Site) -> None:
        self.id = number
        self.release = release
        self.site = site
        self.situation = Situation()
        self.generation = 0
        self.tenure: Tenure | None = None
        """Invariant: there is one exactly in the states ALIVE."""
        self.waiting = False
        """It stands in the queue of loads."""
        self.probe = False
        self.retry_at_s = 0.0
        self.retry_timer: asyncio.TimerHandle | None = None
        self.trouble: Judgement | None = None
        """Why it is not up, as its model's callers get it; None while all is well."""
        self.story: deque[str] = deque(maxlen=STORY)

    @property
    def state(self) -> State:
        """What is true."""
        return self.situation.state

    @property
    def key(self) -> LifeKey:
        """This life among all."""
        return self.id, self.generation

    @property
    def life(self) -> Life | None:
        """The process, while there is one that we know."""
        return self.tenure.life if self.tenure else None

    @property
    def load_failure(self) -> Judgement | None:
        """Why its last load failed, if that is how things stand."""
        return self.trouble if self.trouble and self.trouble.of_load else None

    def serving(self) -> Serving:
        """What the gateways need to know of this life."""
        assert self.life is not None, f"instance {self.id} serves without a process"
        assert self.release.metadata is not None, f"instance {self.id} serves without metadata"
        address = self.site.link_address(self.key)
        return Serving(self.id, self.generation, address, self.release.spec, self.release.metadata, self.life)

    def apply(self, event: lifecycle_events.Event) -> None:
        """Something happened: step, act, let the fleet know."""
        before = self.situation
        spec = self.release.spec
        who = f"{spec.name}/{spec.version}#{self.id}.{self.generation}"
        self.situation, actions = lifecycle.step(before, event, who, self.story)
        self.story.append(f"{type(event).__name__}: {before.state} -> {self.state}")
        if self.state is State.STOPPING and self.tenure and self.tenure.watch:
            self.tenure.watch.close()
        for action in actions:
            hands.carry_out(self, action)
        if actions or self.situation != before:
            self.site.changed(self)

    def born(self, pid: int, descriptors: list[int]) -> None:
        """The keeper has started its process, or gives it to a new brain."""
        assert self.tenure is not None, f"instance {self.id} was not to be started"
        self.tenure.life = Life(worker_token(*self.key), pid, descriptors, WorkerEars(self))
        self.tenure.artefact = self.site.forensics.begun(self.release.spec)
        hands.watch(self, self.tenure.life)
        hands.hear_oom(self)
        faultpoint("brain.adopted")

    def unborn(self, text: str, code: str = "load_failed") -> None:
        """Its process could not be started. With a code of its device's nothing is counted against its model: it is
        tried again when the device is as it was, at the latest as late as one that was given up."""
        self.trouble = Judgement(code, f"the worker could not be started: {text}", of_load=True)
        self.record("load_failed", self.trouble.text, code=code)
        is_own = code == "load_failed"
        decision = self._decide(served_s=0.0) if is_own else backoff.Retry(backoff.PROBE_AFTER_S)
        self._bury()
        self.apply(lifecycle_events.SpawnFailed(decision))

    def ended(self, exited: keeper_control.Exited) -> None:
        """Its process is dead and reaped: hear it out, tell the gateways why, then everybody else."""
        tenure = self.tenure
        assert tenure is not None, f"instance {self.id} has nothing that could end"
        faultpoint("brain.ended")
        if tenure.life is not None:
            tenure.life.end()
            tenure.read_page()
        logbook = self.site.logbook(self.release.spec.name)
        loss = self.site.forensics.loss(self.key)
        in_flight = loss.in_flight if loss.is_complete or not tenure.linked else None
        death = exit_evidence.of(self.release.spec, tenure, exited, logbook.end(self.log_name), in_flight)
        if tenure.linked:
            self.site.gateways.buried(self.key, death.judgement)
        if tenure.is_orderly(exited):
            self.record("worker_stopped", "stopped as it was told to", pid=exited.pid)
            decision: backoff.Next = backoff.Retry(0.0)
        else:
            decision = self._blame(tenure, death, loss)
        self.site.keeper.say(keeper_control.Forget(exited.token))
        faultpoint("brain.buried")
        self._bury()
        self.apply(lifecycle_events.Exited(decision))

    def lost(self) -> None:
        """Its process is gone and nobody will tell how: an earlier brain had heard it, and is dead itself."""
        self._bury()
        self.apply(lifecycle_events.Exited(backoff.Retry(0.0)))

    def record(self, name: str, text: str, **fields: Any) -> Event:  # JSON, as the journal takes it
        """Write an event about this life down."""
        spec = self.release.spec
        return self.site.journal.record(
            name,
            text,
            model=spec.name,
            instance=self.id,
            generation=self.generation,
            version=spec.version,
            **fields,
        )

    @property
    def log_name(self) -> str:
        """This life in its model's logbook."""
        return f"{self.id}.{self.generation}"

    def _blame(self, tenure: Tenure, death: Death, loss: Loss) -> backoff.Next:
        """A death that nobody asked for: what its model's callers get now, what follows, one event."""
        if not tenure.ready_s and tenure.failed is None:
            self.trouble = death.load_failure
        elif tenure.failed is None:
            self.trouble = Judgement("model_restarting", death.judgement.text)
        served_s = time.monotonic() - tenure.ready_s if tenure.ready_s else 0.0
        decision = self._decide(served_s)
        follows = round(decision.after_s, 3) if isinstance(decision, backoff.Retry) else None
        event = self.record(
            "worker_exit",
            death.cause.detail,
            **death.fields(),
            requests=loss.ids(),
            restart=self.generation,
            next_delay_s=follows,
        )
        given_up = decision.reason if isinstance(decision, backoff.GiveUp) else ""
        case = exit_evidence.case(self, death, event["time"], follows, given_up)
        self.site.forensics.died(case, tenure.artefact)
        if death.cause.code == "gpu_fault":
            self.site.devices.faulted(self)
        return decision

    def _decide(self, served_s: float) -> backoff.Next:
        now_s = time.monotonic()
        ends = self.release.ends
        ends.append(backoff.End(now_s, served_s, self.probe))
        instances = len(self.release.instances)
        del ends[: -backoff.HISTORY * instances]
        self.probe = False
        return backoff.next_try(ends, now_s, self.site.rng, instances)

    def _bury(self) -> None:
        tenure = self.tenure
        assert tenure is not None, f"instance {self.id} has nothing to bury"
        self.site.devices.ended(self)
        tenure.close()
        scratch = scratch_of(self.site.place, self.key)
        socket = worker_socket(self.site.settings.runtime_dir, self.id, self.generation)
        self.site.graves.bury(tenure.group, scratch, socket)
        self.tenure = None

    def is_alive(self) -> bool:
        """Whether there is a process, or one is being started."""
        return self.state in ALIVE

    def is_awaited(self) -> bool:
        """Whether somebody may wait for its end: it is alive, and can be ended."""
        return self.is_alive() and self.state is not State.QUARANTINED
