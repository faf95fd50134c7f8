"""All models and instances: turns among the loads, who is linked, what gateways and the next brain are told.

Whatever changes says `changed`; once the present turn of the loop is over, one look at everything follows: swaps that
are due, turns that are free, routes that are new, waiters whose load is decided, and what the keeper shall remember.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Final

from mmsup.ipc.failpoints import failpoint
from mmsup.ipc.messages.gateway_control import Route
from mmsup.supervisor.instances import actions, lifecycle_events
from mmsup.supervisor.instances.context import InstanceContext
from mmsup.supervisor.instances.instance import Instance
from mmsup.supervisor.instances.lifecycle_events import STARTING_UP, InstanceState
from mmsup.supervisor.instances.revision import Revision, RevisionRole, VersionRevision
from mmsup.supervisor.models.load_queue import LoadCandidate, next_loads
from mmsup.supervisor.models.memory_headroom import MemoryHeadroom
from mmsup.supervisor.models.model import Model
from mmsup.supervisor.models.readiness import ModelReadiness
from mmsup.supervisor.repository.scanner import ModelEntry

MAX_UNKILLABLE_REPLACED: Final = 3
"""Of one model, at a time: the rest of the machine is not its to fill."""


class ModelSet:
    """Everything that has been loaded, is being loaded, or could be."""

    def __init__(self, max_parallel_loads: int) -> None:
        self.models: dict[str, Model] = {}
        self.next_instance_id = 1
        self.memory_headroom = MemoryHeadroom()
        self.on_reconciled: Callable[[], None] = lambda: None
        """Called at the end of each look at everything."""
        self.on_route: Callable[[Route], None] = lambda _: None
        self.on_unroute: Callable[[str], None] = lambda _: None
        self._site: InstanceContext | None = None
        self._instances: dict[int, Instance] = {}
        self._limit = max_parallel_loads
        self._dirty: set[str] = set()
        self._said: dict[str, Route] = {}
        self._settling: asyncio.Handle | None = None

    def set_context(self, site: InstanceContext) -> None:
        """What instances act upon; once, before anything is loaded."""
        self._site = site

    @property
    def context(self) -> InstanceContext:
        """What instances act upon."""
        assert self._site is not None, "the fleet has no site yet"
        return self._site

    # What there is.

    def instances(self) -> Iterator[Instance]:
        """All of all models."""
        yield from list(self._instances.values())

    def instance(self, number: int) -> Instance | None:
        """The one of this number, unless it has ended."""
        return self._instances.get(number)

    def model(self, name: str) -> Model | None:
        """The model of this name, if there is one in a repository, or was."""
        return self.models.get(name)

    def readiness(self) -> list[ModelReadiness]:
        """How the wanted models stand."""
        return [model.readiness() for model in self.models.values() if model.wanted]

    def routes(self) -> list[Route]:
        """Every model, for a gateway that knows nothing yet."""
        return [model.route() for model in self.models.values()]

    # What is to be.

    def register(self, entry: ModelEntry) -> Model:
        """The model that a repository holds, as it says now."""
        model = self.models.get(entry.name)
        if model is None:
            model = self.models[entry.name] = Model(entry.name, entry)
        model.entry = entry
        self.mark_changed(entry.name)
        return model

    def add_revision(self, model: Model, entry: ModelEntry, role: RevisionRole, config: str) -> Revision:
        """A new edition of a model: all its instances wanted, none there yet."""
        edition = Revision(role, config, [VersionRevision(spec) for spec in entry.specs], entry.file_digest)
        model.revisions.append(edition)
        for release in edition.versions:
            for _ in range(release.spec.instances):
                self.add_instance(release, self.next_instance_id).apply(lifecycle_events.WantUp())
        self.mark_changed(model.name)
        return edition

    def add_instance(self, release: VersionRevision, number: int) -> Instance:
        """One instance of a release."""
        instance = Instance(number, release, self.context)
        self._instances[number] = instance
        release.instances.append(instance)
        self.next_instance_id = max(self.next_instance_id, number + 1)
        return instance

    def retire(self, edition: Revision) -> None:
        """End an edition: routed to no more, then drained, then gone."""
        edition.role = RevisionRole.RETIRING
        for instance in list(edition.instances()):
            instance.apply(lifecycle_events.WantDown())
        failpoint("brain.retired")

    def activate(self, model: Model, coming: Revision) -> None:
        """The new content takes over: linked first, then the old is let go."""
        old = model.active
        coming.role = RevisionRole.ACTIVE
        for instance in coming.instances():
            if instance.state is InstanceState.READY:
                actions.link_to_gateways(instance)
        self.mark_changed(model.name)
        failpoint("brain.swapped")
        if old is not None:
            old.role = RevisionRole.RETIRING
            self.send_route(model.name)
            self.retire(old)

    def add_replacement(self, instance: Instance) -> Revision:
        """A twin of an instance, as an edition of its own: what becomes of it is not held against the model."""
        twin = VersionRevision(instance.revision.spec, instance.revision.metadata)
        edition = Revision(RevisionRole.STAGED, "", [twin])
        self.models[twin.spec.name].revisions.append(edition)
        self.add_instance(twin, self.next_instance_id).apply(lifecycle_events.WantUp())
        failpoint("brain.beside")
        return edition

    def adopt_replacement(self, edition: Revision, release: VersionRevision) -> None:
        """The twin is ready: from now on it is one of the release, and routed to."""
        (twin,) = edition.versions
        self.models[twin.spec.name].revisions.remove(edition)
        release.metadata = twin.metadata
        for instance in twin.instances:
            instance.revision = release
            release.instances.append(instance)
            actions.link_to_gateways(instance)
        failpoint("brain.joined")
        self.mark_changed(twin.spec.name)

    def replace_unkillable(self, instance: Instance) -> None:
        """Give the place of one that does not die to another; it is forgotten with its process."""
        model, edition, release = (
            self.models[instance.revision.spec.name],
            self.revision_of(instance),
            instance.revision,
        )
        assert edition is not None, f"instance {instance.id} is of no edition"
        release.instances.remove(instance)
        instance.revision = VersionRevision(release.spec, release.metadata, instances=[instance])
        model.revisions.append(Revision(RevisionRole.RETIRING, edition.config, [instance.revision]))
        instance.apply(lifecycle_events.WantDown())
        self.add_instance(release, self.next_instance_id).apply(lifecycle_events.WantUp())

    # What happens.

    def on_instance_changed(self, instance: Instance) -> None:
        """Something about an instance is not as it was."""
        self.mark_changed(instance.revision.spec.name)

    def on_instance_ready(self, instance: Instance) -> None:
        """It serves: link it, if its content is in force."""
        edition = self.revision_of(instance)
        if edition is not None and edition.role is RevisionRole.ACTIVE:
            actions.link_to_gateways(instance)

    def retry(self, code: str, may: Callable[[Instance], bool] = lambda _: True) -> None:
        """Try those again now whose next try is due later, whose last load failed for this, and who may."""
        for instance in self.instances():
            failure = instance.load_failure
            if (
                instance.state is InstanceState.BACKOFF
                and failure is not None
                and failure.code == code
                and may(instance)
            ):
                actions.cancel_retry(instance)
                instance.apply(lifecycle_events.RetryDue())

    def revision_of(self, instance: Instance) -> Revision | None:
        """The edition that an instance belongs to."""
        model = self.models.get(instance.revision.spec.name)
        editions = model.revisions if model is not None else []
        return next((each for each in editions if instance.revision in each.versions), None)

    def mark_changed(self, name: str) -> None:
        """Look at everything once this turn is over."""
        self._dirty.add(name)
        if self._settling is None:
            self._settling = asyncio.get_running_loop().call_soon(self._settle)

    def _settle(self) -> None:
        self._settling = None
        dirty, self._dirty = self._dirty, set()  # what changes from here on has the next look
        for name in dirty:
            self._clear(self.models.get(name))
        self._replace_unkillable()
        self._admit()
        self.on_reconciled()
        for name in sorted(dirty):
            self.send_route(name)

    def _clear(self, model: Model | None) -> None:
        """Take out what has ended."""
        if model is None:
            return
        for edition in model.revisions:
            for release in edition.versions:
                for instance in [each for each in release.instances if each.state is InstanceState.STOPPED]:
                    release.instances.remove(instance)
                    del self._instances[instance.id]
        model.revisions = [
            each for each in model.revisions if each.role is not RevisionRole.RETIRING or any(each.instances())
        ]
        model.had_outcome = model.readiness().has_outcome
        if model.entry is None and not model.wanted and not model.revisions:
            del self.models[model.name]
            if self._said.pop(model.name, None) is not None:
                self.on_unroute(model.name)

    def _replace_unkillable(self) -> None:
        held = [each for each in self.instances() if each.state is InstanceState.QUARANTINED]
        for instance in held:
            of_model = sum(each.revision.spec.name == instance.revision.spec.name for each in held)
            is_due = instance.situation.wanted and instance.process is not None and of_model <= MAX_UNKILLABLE_REPLACED
            if is_due and self.memory_headroom.has_room_for(instance):
                self.replace_unkillable(instance)

    def _admit(self) -> None:
        queue = [
            each for each in self._instances.values() if each.is_queued and not self.context.devices.must_wait(each)
        ]
        if not queue:
            return
        places = sorted({_turn_of(each) for each in queue})
        waiting = [
            LoadCandidate(each.id, places.index(_turn_of(each)), has_served=each.revision.metadata is not None)
            for each in queue
        ]
        loading = [each.revision.metadata is not None for each in self._instances.values() if each.state in STARTING_UP]
        for number in next_loads(waiting, loading, self._limit):
            self._instances[number].apply(lifecycle_events.LoadAdmitted())

    def send_route(self, name: str) -> None:
        """Tell the gateways of a model now, if there is anything new."""
        model = self.models.get(name)
        route = model.route() if model is not None else None
        if route is not None and self._said.get(name) != route:
            self._said[name] = route
            self.on_route(route)

    def close(self) -> None:
        """No next tries, no next look; the processes live on without us."""
        if self._settling is not None:
            self._settling.cancel()
        for instance in self._instances.values():
            actions.cancel_retry(instance)
            if instance.worker is not None:
                instance.worker.close()
                if instance.worker.process is not None:
                    instance.worker.process.close()


def _turn_of(instance: Instance) -> tuple[int, str]:
    """Class of priority and name of its model: what decides whose turn comes first."""
    spec = instance.revision.spec
    return spec.effective_priority(0), spec.name
