"""From one brain to the next: what to leave, and how to take over what was left.

A brain that comes later first makes the fleet as it was remembered, without processes; then the keeper's children find
their places in it by token; then what is remembered as alive and has no child has ended, and what is half done is done
again. Children that nobody remembers are ended. Traffic does not stop meanwhile: nothing here touches it.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from mmsup.ipc.paths import is_worker_name, worker_name
from mmsup.supervisor.instances import actions, lifecycle_events
from mmsup.supervisor.instances.context import InstanceContext, WorkerFailure
from mmsup.supervisor.instances.instance import Instance
from mmsup.supervisor.instances.lifecycle_events import ALIVE, STARTING_UP, InstanceState, Situation
from mmsup.supervisor.instances.revision import Revision, RevisionRole, VersionRevision
from mmsup.supervisor.instances.worker_process import WorkerProcess
from mmsup.supervisor.models.model import Model
from mmsup.supervisor.models.model_set import ModelSet
from mmsup.supervisor.processes.backoff import Exit
from mmsup.supervisor.state.checkpoint import (
    ExitRecord,
    FailureRecord,
    InstanceRecord,
    ModelRecord,
    RevisionRecord,
    VersionRecord,
)


def model_records(fleet: ModelSet) -> tuple[ModelRecord, ...]:
    """All models, to be remembered."""
    return tuple(_model_note(model) for model in fleet.models.values() if model.wanted or model.revisions)


def restore(fleet: ModelSet, models: tuple[ModelRecord, ...]) -> None:
    """The fleet as it was remembered, without processes."""
    for note in models:
        model = fleet.models.setdefault(note.name, Model(note.name, None))
        model.wanted = note.wanted
        for edition_note in note.revisions:
            edition = Revision(RevisionRole(edition_note.role), edition_note.config, [], edition_note.stamp)
            model.revisions.append(edition)
            for each in edition_note.versions:
                ends = [Exit(end.at_s, end.served_s, end.probe) for end in each.ends]
                release = VersionRevision(each.spec, each.metadata, ends)
                edition.versions.append(release)
                for instance_note in each.instances:
                    _restore(fleet.add_instance(release, instance_note.instance), instance_note, fleet.context)


@dataclass(slots=True)
class TakeOverCounts:
    """What became of those who were remembered as alive."""

    kept: int = 0
    ended: int = 0


def take_over(fleet: ModelSet) -> TakeOverCounts:
    """Every child has found its place: go on where the last brain stopped."""
    counts = TakeOverCounts()
    for model in list(fleet.models.values()):
        for edition in list(model.revisions):
            for instance in list(edition.instances()):
                _go_on(instance, edition, counts)
            if edition.role is RevisionRole.STAGED:
                fleet.retire(edition)  # whoever asked for it was told that the brain is gone
        fleet.mark_changed(model.name)
    return counts


def clean_up_unknown(fleet: ModelSet) -> None:
    """Bury what belongs to no life that is known: the last brain made it and could say so to nobody, or had not come to
    bury it."""
    site = fleet.context
    tenures = {each.worker_id: each.worker for each in fleet.instances() if each.worker is not None}
    groups = {tenure.group.name for tenure in tenures.values()}
    for name in set(site.cgroups.names()) - groups:
        if is_worker_name(name.partition("~")[0]):  # what follows the mark was added by cgroup.py
            site.cleanup.add(site.cgroups.group(name), "", "")
    known = {worker_name(*key) for key in tenures}
    runtime = site.settings.runtime_dir
    for name in {*_names_in(site.launch_environment.scratch), *_names_in(runtime)} - known:
        if is_worker_name(name):
            site.cleanup.add(None, str(Path(site.launch_environment.scratch) / name), str(Path(runtime) / name))


def _names_in(folder: str) -> list[str]:
    with contextlib.suppress(OSError):
        return os.listdir(folder)
    return []


def _go_on(instance: Instance, edition: Revision, counts: TakeOverCounts) -> None:
    if instance.state in (InstanceState.BACKOFF, InstanceState.FAILED):
        actions.start_retry_timer(instance)
    if instance.state not in ALIVE:
        return
    if instance.process is None:
        counts.ended += 1
        instance.vanished()
        return
    counts.kept += 1
    was = instance.state
    instance.process.channel.drain()  # what it said while there was no brain
    if instance.state is not was:
        return  # and that was the next step
    if instance.state is InstanceState.READY and instance.revision.metadata is not None:
        if edition.role is RevisionRole.ACTIVE:
            actions.link_to_gateways(instance)
    elif instance.state in (InstanceState.STARTING, InstanceState.READY) or _is_unheard(instance):
        _begin_anew(instance)
    elif instance.state is InstanceState.DRAINING:
        actions.perform(instance, lifecycle_events.StartDrain())
    elif instance.state in (InstanceState.STOPPING, InstanceState.QUARANTINED):
        actions.perform(instance, lifecycle_events.Kill())


def _is_unheard(instance: Instance) -> bool:
    """It serves by its page, and has said so to a brain that did not live to do anything about it."""
    assert instance.process is not None, f"instance {instance.id} has no process"
    return instance.state in STARTING_UP and instance.process.has_served


def _begin_anew(instance: Instance) -> None:
    """Whether it was told what to become, or what it told, nobody knows: no fault of its model's."""
    assert instance.worker is not None, f"instance {instance.id} has no process"
    instance.worker.killed_unwanted = True
    instance.situation = Situation(instance.situation.wanted, InstanceState.STOPPING)
    actions.perform(instance, lifecycle_events.Kill())


def _restore(instance: Instance, note: InstanceRecord, site: InstanceContext) -> None:
    instance.situation = Situation(note.wanted, InstanceState(note.state))
    instance.generation = note.generation
    instance.is_probe = note.probe
    instance.retry_at_s = note.retry_at_s
    instance.is_queued = note.wanted and instance.state is InstanceState.ABSENT
    instance.failure = _judgement(note.trouble)
    if instance.state in ALIVE:
        instance.worker = WorkerProcess(site.cgroups.group(note.group), note.spawned_s, note.visible_devices)
        instance.worker.ready_s = note.ready_s
        instance.worker.is_linked = note.ready_s > 0
        instance.worker.condemned = _judgement(note.condemned)
        instance.worker.load_failure = _judgement(note.failed)
        instance.worker.stop_sent = instance.state is InstanceState.DRAINING  # or about to be told, by either of us


def _model_note(model: Model) -> ModelRecord:
    return ModelRecord(model.name, model.wanted, tuple(_edition_note(each) for each in model.revisions))


def _edition_note(edition: Revision) -> RevisionRecord:
    releases = tuple(_release_note(each) for each in edition.versions)
    return RevisionRecord(edition.role, edition.config, edition.stamp, releases)


def _release_note(release: VersionRevision) -> VersionRecord:
    ends = tuple(ExitRecord(end.at_s, end.served_s, end.was_probe) for end in release.exits)
    return VersionRecord(
        release.spec, release.metadata, ends, tuple(_instance_note(each) for each in release.instances)
    )


def _instance_note(instance: Instance) -> InstanceRecord:
    tenure = instance.worker
    return InstanceRecord(
        instance=instance.id,
        generation=instance.generation,
        wanted=instance.situation.wanted,
        state=instance.state,
        probe=instance.is_probe,
        retry_at_s=instance.retry_at_s,
        spawned_s=tenure.spawned_s if tenure else 0.0,
        ready_s=tenure.ready_s if tenure else 0.0,
        trouble=_judgement_note(instance.failure),
        condemned=_judgement_note(tenure.condemned) if tenure else None,
        failed=_judgement_note(tenure.load_failure) if tenure else None,
        group=tenure.group.name if tenure else "",
        visible_devices=tenure.visible_devices if tenure else "",
    )


def _judgement_note(judgement: WorkerFailure | None) -> FailureRecord | None:
    return FailureRecord(judgement.code, judgement.text, judgement.of_load) if judgement else None


def _judgement(note: FailureRecord | None) -> WorkerFailure | None:
    return WorkerFailure(note.code, note.text, of_load=note.of_load) if note else None
