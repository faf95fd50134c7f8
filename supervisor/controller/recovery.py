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

from mmsup.ipc.paths import is_life_name, life_name
from mmsup.supervisor.instances import actions, lifecycle_events
from mmsup.supervisor.instances.context import Judgement, Site
from mmsup.supervisor.instances.instance import Instance
from mmsup.supervisor.instances.lifecycle_events import ALIVE, COMING_UP, Situation, State
from mmsup.supervisor.instances.revision import Edition, Release, Role
from mmsup.supervisor.instances.worker_process import Tenure
from mmsup.supervisor.models.model import Model
from mmsup.supervisor.models.model_set import Fleet
from mmsup.supervisor.processes.backoff import End
from mmsup.supervisor.state.checkpoint import EditionNote, EndNote, InstanceNote, JudgementNote, ModelNote, ReleaseNote


def notes(fleet: Fleet) -> tuple[ModelNote, ...]:
    """All models, to be remembered."""
    return tuple(_model_note(model) for model in fleet.models.values() if model.wanted or model.editions)


def restore(fleet: Fleet, models: tuple[ModelNote, ...]) -> None:
    """The fleet as it was remembered, without processes."""
    for note in models:
        model = fleet.models.setdefault(note.name, Model(note.name, None))
        model.wanted = note.wanted
        for edition_note in note.editions:
            edition = Edition(Role(edition_note.role), edition_note.config, [], edition_note.stamp)
            model.editions.append(edition)
            for each in edition_note.releases:
                ends = [End(end.at_s, end.served_s, end.probe) for end in each.ends]
                release = Release(each.spec, each.metadata, ends)
                edition.releases.append(release)
                for instance_note in each.instances:
                    _restore(fleet.add(release, instance_note.id), instance_note, fleet.site)


@dataclass(slots=True)
class Adopted:
    """What became of those who were remembered as alive."""

    kept: int = 0
    ended: int = 0


def take_over(fleet: Fleet) -> Adopted:
    """Every child has found its place: go on where the last brain stopped."""
    counts = Adopted()
    for model in list(fleet.models.values()):
        for edition in list(model.editions):
            for instance in list(edition.instances()):
                _go_on(instance, edition, counts)
            if edition.role is Role.COMING:
                fleet.retire(edition)  # whoever asked for it was told that the brain is gone
        fleet.touch(model.name)
    return counts


def clear(fleet: Fleet) -> None:
    """Bury what belongs to no life that is known: the last brain made it and could say so to nobody, or had not come to
    bury it."""
    site = fleet.site
    tenures = {each.key: each.tenure for each in fleet.instances() if each.tenure is not None}
    groups = {tenure.group.name for tenure in tenures.values()}
    for name in set(site.cgroups.lives()) - groups:
        if is_life_name(name.partition("~")[0]):  # what follows the mark was added by cgroup.py
            site.graves.bury(site.cgroups.group(name), "", "")
    known = {life_name(*key) for key in tenures}
    runtime = site.settings.runtime_dir
    for name in {*_names_in(site.place.scratch), *_names_in(runtime)} - known:
        if is_life_name(name):
            site.graves.bury(None, str(Path(site.place.scratch) / name), str(Path(runtime) / name))


def _names_in(folder: str) -> list[str]:
    with contextlib.suppress(OSError):
        return os.listdir(folder)
    return []


def _go_on(instance: Instance, edition: Edition, counts: Adopted) -> None:
    if instance.state in (State.BACKOFF, State.FAILED):
        actions.arm_retry(instance)
    if instance.state not in ALIVE:
        return
    if instance.life is None:
        counts.ended += 1
        instance.lost()
        return
    counts.kept += 1
    was = instance.state
    instance.life.peer.drain()  # what it said while there was no brain
    if instance.state is not was:
        return  # and that was the next step
    if instance.state is State.READY and instance.release.metadata is not None:
        if edition.role is Role.CURRENT:
            actions.link(instance)
    elif instance.state in (State.STARTING, State.READY) or _is_unheard(instance):
        _begin_anew(instance)
    elif instance.state is State.DRAINING:
        actions.carry_out(instance, lifecycle_events.Drain())
    elif instance.state in (State.STOPPING, State.QUARANTINED):
        actions.carry_out(instance, lifecycle_events.Kill())


def _is_unheard(instance: Instance) -> bool:
    """It serves by its page, and has said so to a brain that did not live to do anything about it."""
    assert instance.life is not None, f"instance {instance.id} has no process"
    return instance.state in COMING_UP and instance.life.has_come_up


def _begin_anew(instance: Instance) -> None:
    """Whether it was told what to become, or what it told, nobody knows: no fault of its model's."""
    assert instance.tenure is not None, f"instance {instance.id} has no process"
    instance.tenure.dropped = True
    instance.situation = Situation(instance.situation.wanted, State.STOPPING)
    actions.carry_out(instance, lifecycle_events.Kill())


def _restore(instance: Instance, note: InstanceNote, site: Site) -> None:
    instance.situation = Situation(note.wanted, State(note.state))
    instance.generation = note.generation
    instance.probe = note.probe
    instance.retry_at_s = note.retry_at_s
    instance.waiting = note.wanted and instance.state is State.ABSENT
    instance.trouble = _judgement(note.trouble)
    if instance.state in ALIVE:
        instance.tenure = Tenure(site.cgroups.group(note.group), note.spawned_s, note.visible_devices)
        instance.tenure.ready_s = note.ready_s
        instance.tenure.linked = note.ready_s > 0
        instance.tenure.judgement = _judgement(note.condemned)
        instance.tenure.failed = _judgement(note.failed)
        instance.tenure.told_to_leave = instance.state is State.DRAINING  # or about to be told, by either of us


def _model_note(model: Model) -> ModelNote:
    return ModelNote(model.name, model.wanted, tuple(_edition_note(each) for each in model.editions))


def _edition_note(edition: Edition) -> EditionNote:
    releases = tuple(_release_note(each) for each in edition.releases)
    return EditionNote(edition.role, edition.config, edition.stamp, releases)


def _release_note(release: Release) -> ReleaseNote:
    ends = tuple(EndNote(end.at_s, end.served_s, end.probe) for end in release.ends)
    return ReleaseNote(release.spec, release.metadata, ends, tuple(_instance_note(each) for each in release.instances))


def _instance_note(instance: Instance) -> InstanceNote:
    tenure = instance.tenure
    return InstanceNote(
        id=instance.id,
        generation=instance.generation,
        wanted=instance.situation.wanted,
        state=instance.state,
        probe=instance.probe,
        retry_at_s=instance.retry_at_s,
        spawned_s=tenure.spawned_s if tenure else 0.0,
        ready_s=tenure.ready_s if tenure else 0.0,
        trouble=_judgement_note(instance.trouble),
        condemned=_judgement_note(tenure.judgement) if tenure else None,
        failed=_judgement_note(tenure.failed) if tenure else None,
        group=tenure.group.name if tenure else "",
        visible_devices=tenure.visible_devices if tenure else "",
    )


def _judgement_note(judgement: Judgement | None) -> JudgementNote | None:
    return JudgementNote(judgement.code, judgement.text, judgement.of_load) if judgement else None


def _judgement(note: JudgementNote | None) -> Judgement | None:
    return Judgement(note.code, note.text, of_load=note.of_load) if note else None
