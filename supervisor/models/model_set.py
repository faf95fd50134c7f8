"""All models of the server and all their instances, by name and by number.

Whatever changes a model calls `mark_changed`; once the present turn of the event loop is over, the reconciler
(reconciler.py) makes one pass over the models that have changed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

from mmsup.ipc.failpoints import failpoint
from mmsup.ipc.messages.gateway_control import Route, Unroute
from mmsup.supervisor.capacity.memory_admission import MemoryAdmission
from mmsup.supervisor.instances import actions, lifecycle_events
from mmsup.supervisor.instances.context import InstanceContext
from mmsup.supervisor.instances.instance import Instance, InstanceHooks, VersionRevision
from mmsup.supervisor.instances.lifecycle_events import InstanceState
from mmsup.supervisor.models.model import Model, fit_message
from mmsup.supervisor.models.revision import Revision
from mmsup.supervisor.models.sleep_state import SleepPhase
from mmsup.supervisor.processes import idle_start
from mmsup.supervisor.repository.scanner import ModelEntry


class ModelSet:
    def __init__(self) -> None:
        self.models: dict[str, Model] = {}
        self.next_instance_id = 1
        self.memory: MemoryAdmission
        self.on_change: Callable[[set[str]], None] = lambda _: None
        """Called with the names of the models that have changed in a turn of the event loop, after it."""
        self.send_to_gateways: Callable[[Route | Unroute], None] = lambda _: None
        self.context: InstanceContext
        self.hooks: InstanceHooks
        """What instances act upon and report to, and whether memory holds one more; set once, before the first of
        them is made."""
        self._instances: dict[int, Instance] = {}
        self._changed: set[str] = set()
        self._sent_routes: dict[str, Route] = {}
        self._pass: asyncio.Handle | None = None

    def instances(self) -> Iterator[Instance]:
        yield from list(self._instances.values())

    def instance(self, number: int) -> Instance | None:
        return self._instances.get(number)

    def current_instance(self, number: int, generation: int) -> Instance | None:
        """The instance whose present process this is."""
        instance = self._instances.get(number)
        if instance is None or instance.worker is None or instance.generation != generation:
            return None
        return instance

    def model(self, name: str) -> Model | None:
        return self.models.get(name)

    def revision_of(self, instance: Instance) -> Revision | None:
        model = self.models.get(instance.revision.spec.name)
        revisions = model.revisions if model is not None else []
        return next((each for each in revisions if instance.revision in each.versions), None)

    def register(self, entry: ModelEntry) -> Model:
        model = self.models.get(entry.name)
        if model is None:
            model = self.models[entry.name] = Model(entry.name, entry)
        model.entry = entry
        self.mark_changed(entry.name)
        return model

    def add_instance(self, version: VersionRevision, number: int = 0) -> Instance:
        """One more instance of a version, of the next number if none is given."""
        number = number or self.next_instance_id
        instance = self._instances[number] = Instance(number, version, self.context, self.hooks)
        version.instances.append(instance)
        self.next_instance_id = max(self.next_instance_id, number + 1)
        return instance

    def remove_instance(self, instance: Instance) -> None:
        instance.revision.instances.remove(instance)
        del self._instances[instance.id]

    def on_instance_changed(self, instance: Instance) -> None:
        self.mark_changed(instance.revision.spec.name)

    def mark_changed(self, name: str) -> None:
        """A fact about a model has changed: have the reconciler look at it after this turn of the event loop."""
        self._changed.add(name)
        if self._pass is None:
            self._pass = asyncio.get_running_loop().call_soon(self._run_pass)

    def _run_pass(self) -> None:
        self._pass = None
        changed, self._changed = self._changed, set()  # what changes during a pass has the next one
        self.on_change(changed)

    def retry(self, code: str, may: Callable[[Instance], bool] = lambda _: True) -> None:
        """Retry now all instances whose last load failed with this code and that may start."""
        for instance in self.instances():
            failure = instance.load_failure
            if failure is None or failure.code != code or instance.state is not InstanceState.BACKOFF:
                continue
            if may(instance):
                actions.cancel_retry(instance)
                instance.apply(lifecycle_events.RetryDue())

    def send_route(self, name: str) -> None:
        """Send the route of a model to the gateways if it differs from the last one sent, or that the model is gone."""
        model = self.models.get(name)
        route = model.route() if model is not None else None
        if route == self._sent_routes.get(name):
            return
        if route is None:
            del self._sent_routes[name]
            self.send_to_gateways(Unroute(name))
        else:
            self._sent_routes[name] = route
            self.send_to_gateways(fit_message(route))
            failpoint("brain.routed")

    def close(self) -> None:
        """Cancel all timers; the processes go on without this one."""
        if self._pass is not None:
            self._pass.cancel()
        for instance in self._instances.values():
            actions.cancel_retry(instance)
            if instance.worker is not None:
                instance.worker.close()
                if instance.worker.process is not None:
                    instance.worker.process.close()


def is_awaited(model_set: ModelSet, instance: Instance) -> bool:
    """Whether its model is being loaded from sleep."""
    model = model_set.model(instance.revision.spec.name)
    return model is not None and model.sleep.phase is SleepPhase.WAKING


def start_bound_s(model_set: ModelSet, instance: Instance) -> float:
    """How long its worker may be kept from the processor by those who serve while it starts."""
    serving = [each.revision for each in model_set.instances() if each.state is InstanceState.READY]
    spec = instance.revision.spec
    return idle_start.bound_s(
        does_any_serve=bool(serving),
        does_same_serve=any((each.spec.name, each.spec.version) == (spec.name, spec.version) for each in serving),
        has_served=is_awaited(model_set, instance) or instance.revision.metadata is not None,
    )


def content_id(model_set: ModelSet, instance: Instance) -> str:
    """Identifies the files and the configuration that it is made from; empty if it is of no revision any more."""
    revision = model_set.revision_of(instance)
    return revision.content_id if revision is not None else ""


def take_number(model_set: ModelSet) -> int:
    """A number that no instance has had or will have, for a process of another kind."""
    model_set.next_instance_id += 1
    return model_set.next_instance_id - 1
