"""The reconcile pass over models that have changed: stopped instances go, loads are admitted, readiness is known anew.

A pass touches only models that have changed since the last one. What must be found among all instances (those that
wait for a load, load, or cannot be killed) is kept in sets that each pass updates.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from mmsup.supervisor.instances import lifecycle_events
from mmsup.supervisor.instances.instance import Instance
from mmsup.supervisor.instances.lifecycle_events import LOADING, InstanceState
from mmsup.supervisor.models import revision_changes
from mmsup.supervisor.models.load_queue import (
    LoadCandidate,
    LoadKind,
    LoadOrder,
    RunningLoad,
    load_kind,
    load_order,
    next_loads,
    slots_held,
)
from mmsup.supervisor.models.model import Model
from mmsup.supervisor.models.model_set import ModelSet, is_awaited
from mmsup.supervisor.models.revision import RevisionRole

_ENDING: Final = (RevisionRole.RETIRING, RevisionRole.OFFLOADED)
"""A revision in one of these roles is forgotten with its last process."""
MAX_UNKILLABLE_REPLACED: Final = 3
"""Of one model, at a time: unkillable workers keep their memory, and one model must not fill the machine."""


class Reconciler:
    def __init__(
        self, model_set: ModelSet, max_parallel_loads: int, on_reconciled: Callable[[set[str], bool], None]
    ) -> None:
        """`on_reconciled` gets the names of the models that have changed, and whether a readiness has."""
        self._model_set = model_set
        self._max_parallel_loads = max_parallel_loads
        self._on_reconciled = on_reconciled
        self._queued: dict[int, Instance] = {}
        self._loading: dict[int, Instance] = {}
        self._unkillable: dict[int, Instance] = {}
        model_set.on_change = self.reconcile

    def reconcile(self, changed: set[str]) -> None:
        readiness_changed = [self._update(model) for name in changed if (model := self._model_set.model(name))]
        if self._unkillable:
            self._replace_unkillable()
        if self._queued:
            self._admit_loads()
        self._on_reconciled(changed, any(readiness_changed))
        for name in sorted(changed):
            self._model_set.send_route(name)

    def _update(self, model: Model) -> bool:
        """Remove what has stopped; whether the readiness of the model has changed."""
        for instance in list(model.instances()):
            if instance.state is InstanceState.STOPPED:
                self._model_set.remove_instance(instance)
            _keep(self._queued, instance, is_member=instance.is_queued)
            _keep(self._loading, instance, is_member=instance.state in LOADING)
            _keep(self._unkillable, instance, is_member=instance.state is InstanceState.QUARANTINED)
        model.revisions = [each for each in model.revisions if each.role not in _ENDING or any(each.instances())]
        if model.entry is None and not model.wanted and not model.revisions:
            del self._model_set.models[model.name]
        return model.update_readiness()

    def _replace_unkillable(self) -> None:
        for instance in list(self._unkillable.values()):
            name = instance.revision.spec.name
            of_model = sum(each.revision.spec.name == name for each in self._unkillable.values())
            is_due = instance.situation.wanted and instance.process is not None and of_model <= MAX_UNKILLABLE_REPLACED
            if is_due and self._model_set.memory.has_room_for(instance):
                revision_changes.replace_unkillable(self._model_set, instance)

    def _admit_loads(self) -> None:
        devices, queued = self._model_set.context.devices, self._queued
        kinds = {each.id: self._load_kind(each) for each in queued.values()}
        slots = max(each.slots(self._max_parallel_loads) for each in kinds.values())
        memory = self._model_set.memory.begin_pass(slots)

        def may_start(number: int) -> bool:
            instance = queued[number]
            if instance.worker is not None:  # it is restored where it is
                return memory.need_not_wait(instance, instance.worker.gpu.device)
            must_wait = devices.must_wait(instance.id, instance.revision.spec, instance.report_progress)
            return not must_wait and memory.need_not_wait(instance, devices.expected(instance.revision.spec))

        orders = {each.id: self._load_order(each) for each in queued.values()}
        places = {order: place for place, order in enumerate(sorted(orders.values()))}
        candidates = [
            LoadCandidate(each.id, places[orders[each.id]], kinds[each.id], each.load_failure is not None)
            for each in queued.values()
        ]
        awaited = Counter(kinds[each.id] for each in queued.values() if is_awaited(self._model_set, each))
        running = [self._running_load(each, time.monotonic()) for each in self._loading.values()]
        loading = slots_held(running, awaited, self._max_parallel_loads)
        for number in next_loads(candidates, loading, self._max_parallel_loads, may_start):
            queued[number].apply(lifecycle_events.LoadAdmitted())

    def _load_order(self, instance: Instance) -> LoadOrder:
        spec = instance.revision.spec
        awaited = instance.id if is_awaited(self._model_set, instance) else None
        return load_order(spec.effective_priority(0), awaited, spec.name)

    def _running_load(self, instance: Instance, now_s: float) -> RunningLoad:
        if instance.state is InstanceState.RESTORING:
            return RunningLoad(self._load_kind(instance), 0.0, None)  # its process is old, and that says nothing
        running_s = now_s - instance.require_worker().spawned_s
        return RunningLoad(self._load_kind(instance), running_s, self._usual_s(instance))

    def _load_kind(self, instance: Instance) -> LoadKind:
        return load_kind(self._usual_s(instance), has_served=self._has_served(instance))

    def _usual_s(self, instance: Instance) -> float | None:
        return self._model_set.models[instance.revision.spec.name].sleep.load_s

    def _has_served(self, instance: Instance) -> bool:
        """Whether its content has, also before the model was put to sleep."""
        version, revision = instance.revision, self._model_set.revision_of(instance)
        if version.metadata is not None or revision is None:
            return version.metadata is not None
        sleep = self._model_set.models[version.spec.name].sleep
        return sleep.known_metadata(revision.stamp, version.spec.version) is not None


def _keep(members: dict[int, Instance], instance: Instance, *, is_member: bool) -> None:
    if is_member:
        members[instance.id] = instance
    else:
        members.pop(instance.id, None)
