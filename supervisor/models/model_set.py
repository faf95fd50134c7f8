"""All models and instances: turns among the loads, who is linked, what gateways and the next brain are told.

Whatever changes says `changed`; once the present turn of the loop is over, one look at everything follows: swaps that
are due, turns that are free, routes that are new, waiters whose load is decided, and what the keeper shall remember.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Final

from mmsup.ipc.failpoints import faultpoint
from mmsup.ipc.messages.gateway_control import Route
from mmsup.supervisor.instances import actions, lifecycle_events
from mmsup.supervisor.instances.context import Site
from mmsup.supervisor.instances.instance import Instance
from mmsup.supervisor.instances.lifecycle_events import COMING_UP, State
from mmsup.supervisor.instances.revision import Edition, Release, Role
from mmsup.supervisor.models.load_queue import Candidate, admit
from mmsup.supervisor.models.memory_headroom import Room
from mmsup.supervisor.models.model import Model
from mmsup.supervisor.models.readiness import Standing
from mmsup.supervisor.repository.scanner import ModelEntry

MOST_UNKILLABLE: Final = 3
"""Of one model, at a time: the rest of the machine is not its to fill."""


class Fleet:
    """Everything that has been loaded, is being loaded, or could be."""

    def __init__(self, max_parallel_loads: int) -> None:
        self.models: dict[str, Model] = {}
        self.next_instance = 1
        self.room = Room()
        self.on_settled: Callable[[], None] = lambda: None
        """Called at the end of each look at everything."""
        self.on_route: Callable[[Route], None] = lambda _: None
        self.on_unroute: Callable[[str], None] = lambda _: None
        self._site: Site | None = None
        self._instances: dict[int, Instance] = {}
        self._limit = max_parallel_loads
        self._dirty: set[str] = set()
        self._said: dict[str, Route] = {}
        self._settling: asyncio.Handle | None = None

    def use(self, site: Site) -> None:
        """What instances act upon; once, before anything is loaded."""
        self._site = site

    @property
    def site(self) -> Site:
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

    def standings(self) -> list[Standing]:
        """How the wanted models stand."""
        return [model.standing() for model in self.models.values() if model.wanted]

    def routes(self) -> list[Route]:
        """Every model, for a gateway that knows nothing yet."""
        return [model.route() for model in self.models.values()]

    # What is to be.

    def know(self, entry: ModelEntry) -> Model:
        """The model that a repository holds, as it says now."""
        model = self.models.get(entry.name)
        if model is None:
            model = self.models[entry.name] = Model(entry.name, entry)
        model.entry = entry
        self.touch(entry.name)
        return model

    def make(self, model: Model, entry: ModelEntry, role: Role, config: str) -> Edition:
        """A new edition of a model: all its instances wanted, none there yet."""
        edition = Edition(role, config, [Release(spec) for spec in entry.specs], entry.stamp)
        model.editions.append(edition)
        for release in edition.releases:
            for _ in range(release.spec.instances):
                self.add(release, self.next_instance).apply(lifecycle_events.WantUp())
        self.touch(model.name)
        return edition

    def add(self, release: Release, number: int) -> Instance:
        """One instance of a release."""
        instance = Instance(number, release, self.site)
        self._instances[number] = instance
        release.instances.append(instance)
        self.next_instance = max(self.next_instance, number + 1)
        return instance

    def retire(self, edition: Edition) -> None:
        """End an edition: routed to no more, then drained, then gone."""
        edition.role = Role.LEAVING
        for instance in list(edition.instances()):
            instance.apply(lifecycle_events.WantDown())
        faultpoint("brain.retired")

    def swap(self, model: Model, coming: Edition) -> None:
        """The new content takes over: linked first, then the old is let go."""
        old = model.current
        coming.role = Role.CURRENT
        for instance in coming.instances():
            if instance.state is State.READY:
                actions.link(instance)
        self.touch(model.name)
        faultpoint("brain.swapped")
        if old is not None:
            old.role = Role.LEAVING
            self.flush(model.name)
            self.retire(old)

    def beside(self, instance: Instance) -> Edition:
        """A twin of an instance, as an edition of its own: what becomes of it is not held against the model."""
        twin = Release(instance.release.spec, instance.release.metadata)
        edition = Edition(Role.COMING, "", [twin])
        self.models[twin.spec.name].editions.append(edition)
        self.add(twin, self.next_instance).apply(lifecycle_events.WantUp())
        faultpoint("brain.beside")
        return edition

    def join(self, edition: Edition, release: Release) -> None:
        """The twin is ready: from now on it is one of the release, and routed to."""
        (twin,) = edition.releases
        self.models[twin.spec.name].editions.remove(edition)
        release.metadata = twin.metadata
        for instance in twin.instances:
            instance.release = release
            release.instances.append(instance)
            actions.link(instance)
        faultpoint("brain.joined")
        self.touch(twin.spec.name)

    def replace(self, instance: Instance) -> None:
        """Give the place of one that does not die to another; it is forgotten with its process."""
        model, edition, release = self.models[instance.release.spec.name], self.edition_of(instance), instance.release
        assert edition is not None, f"instance {instance.id} is of no edition"
        release.instances.remove(instance)
        instance.release = Release(release.spec, release.metadata, instances=[instance])
        model.editions.append(Edition(Role.LEAVING, edition.config, [instance.release]))
        instance.apply(lifecycle_events.WantDown())
        self.add(release, self.next_instance).apply(lifecycle_events.WantUp())

    # What happens.

    def changed(self, instance: Instance) -> None:
        """Something about an instance is not as it was."""
        self.touch(instance.release.spec.name)

    def ready(self, instance: Instance) -> None:
        """It serves: link it, if its content is in force."""
        edition = self.edition_of(instance)
        if edition is not None and edition.role is Role.CURRENT:
            actions.link(instance)

    def retry(self, code: str, may: Callable[[Instance], bool] = lambda _: True) -> None:
        """Try those again now whose next try is due later, whose last load failed for this, and who may."""
        for instance in self.instances():
            failure = instance.load_failure
            if instance.state is State.BACKOFF and failure is not None and failure.code == code and may(instance):
                actions.cancel_retry(instance)
                instance.apply(lifecycle_events.RetryDue())

    def edition_of(self, instance: Instance) -> Edition | None:
        """The edition that an instance belongs to."""
        model = self.models.get(instance.release.spec.name)
        editions = model.editions if model is not None else []
        return next((each for each in editions if instance.release in each.releases), None)

    def touch(self, name: str) -> None:
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
        self.on_settled()
        for name in sorted(dirty):
            self.flush(name)

    def _clear(self, model: Model | None) -> None:
        """Take out what has ended."""
        if model is None:
            return
        for edition in model.editions:
            for release in edition.releases:
                for instance in [each for each in release.instances if each.state is State.STOPPED]:
                    release.instances.remove(instance)
                    del self._instances[instance.id]
        model.editions = [each for each in model.editions if each.role is not Role.LEAVING or any(each.instances())]
        model.was_decided = model.standing().decided
        if model.entry is None and not model.wanted and not model.editions:
            del self.models[model.name]
            if self._said.pop(model.name, None) is not None:
                self.on_unroute(model.name)

    def _replace_unkillable(self) -> None:
        held = [each for each in self.instances() if each.state is State.QUARANTINED]
        for instance in held:
            of_model = sum(each.release.spec.name == instance.release.spec.name for each in held)
            is_due = instance.situation.wanted and instance.life is not None and of_model <= MOST_UNKILLABLE
            if is_due and self.room.is_for(instance):
                self.replace(instance)

    def _admit(self) -> None:
        queue = [each for each in self._instances.values() if each.waiting and not self.site.devices.holds(each)]
        if not queue:
            return
        places = sorted({_turn_of(each) for each in queue})
        waiting = [
            Candidate(each.id, places.index(_turn_of(each)), again=each.release.metadata is not None) for each in queue
        ]
        loading = [each.release.metadata is not None for each in self._instances.values() if each.state in COMING_UP]
        for number in admit(waiting, loading, self._limit):
            self._instances[number].apply(lifecycle_events.Admitted())

    def flush(self, name: str) -> None:
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
            if instance.tenure is not None:
                instance.tenure.close()
                if instance.tenure.life is not None:
                    instance.tenure.life.close()


def _turn_of(instance: Instance) -> tuple[int, str]:
    """Class of priority and name of its model: what decides whose turn comes first."""
    spec = instance.release.spec
    return spec.level_of(0), spec.name
