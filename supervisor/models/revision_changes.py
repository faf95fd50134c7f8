"""The steps by which one revision of a model, or one instance in it, takes over from another."""

from __future__ import annotations

from mmsup.ipc.failpoints import failpoint
from mmsup.ipc.specs import Metadata, ModelSpec
from mmsup.supervisor.instances import actions, lifecycle_events
from mmsup.supervisor.instances.instance import Instance, VersionRevision
from mmsup.supervisor.instances.lifecycle_events import InstanceState
from mmsup.supervisor.models.model import Model
from mmsup.supervisor.models.model_set import ModelSet
from mmsup.supervisor.models.revision import Revision, RevisionRole
from mmsup.supervisor.repository.scanner import ModelEntry


def add_revision(model_set: ModelSet, model: Model, entry: ModelEntry, role: RevisionRole, config: str) -> Revision:
    """A new revision of a model, with all its instances wanted and none started."""
    revision = Revision(
        role, config, [VersionRevision(spec, declared(spec)) for spec in entry.specs], entry.file_digest
    )
    model.revisions.append(revision)
    for version in revision.versions:
        for _ in range(version.spec.instances):
            model_set.add_instance(version).apply(lifecycle_events.WantUp())
    model_set.mark_changed(model.name)
    return revision


def declared(spec: ModelSpec) -> Metadata | None:
    """What an ensemble declares, which has no worker that could tell more; None for any other model."""
    return Metadata(spec.platform, spec.max_batch_size, spec.inputs, spec.outputs) if spec.steps else None


def link_if_active(model_set: ModelSet, instance: Instance) -> None:
    """An instance is ready: link it to the gateways if its revision is the active one."""
    revision = model_set.revision_of(instance)
    if revision is not None and revision.role is RevisionRole.ACTIVE:
        actions.link_to_gateways(instance)


def activate(model_set: ModelSet, model: Model, staged: Revision) -> None:
    """The staged revision becomes the active one: it is linked first, then the old one is retired."""
    old = model.active
    staged.role = RevisionRole.ACTIVE
    for instance in staged.instances():
        if instance.state is InstanceState.READY:
            actions.link_to_gateways(instance)
    model_set.mark_changed(model.name)
    failpoint("brain.swapped")
    if old is not None:
        old.role = RevisionRole.RETIRING
        model_set.send_route(model.name)
        retire(old)


def retire(revision: Revision) -> None:
    """Stop a revision: its instances are unlinked, drained, stopped."""
    revision.role = RevisionRole.RETIRING
    for instance in list(revision.instances()):
        instance.apply(lifecycle_events.WantDown())
    failpoint("brain.retired")


def offload(revision: Revision) -> None:
    """Keep the processes of a revision with its model out of memory: unlinked, finished with their requests, moved."""
    revision.role = RevisionRole.OFFLOADED
    for instance in list(revision.instances()):
        instance.apply(lifecycle_events.WantOffloaded())
    failpoint("brain.offloading")


def restore_offloaded(model_set: ModelSet, model: Model, entry: ModelEntry, config: str) -> Revision | None:
    """The revision that was offloaded, active again and on its way back, if it is of this content; else None, and it is
    retired."""
    revision = model.revision(RevisionRole.OFFLOADED)
    if revision is None:
        return None
    is_same = (revision.stamp, revision.config) == (entry.file_digest, config)
    is_same = is_same and [each.spec for each in revision.versions] == list(entry.specs)
    if not is_same or not revision.can_be_restored():
        retire(revision)
        return None
    revision.role = RevisionRole.ACTIVE
    for instance in revision.instances():
        instance.apply(lifecycle_events.WantUp())
    model_set.mark_changed(model.name)
    failpoint("brain.restoring")
    return revision


def add_replacement(model_set: ModelSet, instance: Instance) -> Revision:
    """Start another instance of the same version, staged in a revision of its own: its failure is not the model's."""
    version = VersionRevision(instance.revision.spec, instance.revision.metadata)
    of = model_set.revision_of(instance)
    revision = Revision(RevisionRole.STAGED, of.config if of else "", [version], of.stamp if of else "")
    model_set.models[version.spec.name].revisions.append(revision)
    model_set.add_instance(version).apply(lifecycle_events.WantUp())
    failpoint("brain.beside")
    return revision


def adopt_replacement(model_set: ModelSet, staged: Revision, version: VersionRevision) -> None:
    """The replacement is ready: move it into the version that it was started for, and link it."""
    (own,) = staged.versions
    model_set.models[own.spec.name].revisions.remove(staged)
    version.metadata = own.metadata
    for instance in own.instances:
        instance.revision = version
        version.instances.append(instance)
        actions.link_to_gateways(instance)
    failpoint("brain.joined")
    model_set.mark_changed(own.spec.name)


def replace_unkillable(model_set: ModelSet, instance: Instance) -> None:
    """Start another instance instead of one that SIGKILL does not end; that one is forgotten when it exits."""
    version, revision = instance.revision, model_set.revision_of(instance)
    assert revision is not None, f"instance {instance.id} is of no revision"
    version.instances.remove(instance)
    instance.revision = VersionRevision(version.spec, version.metadata, instances=[instance])
    retiring = Revision(RevisionRole.RETIRING, revision.config, [instance.revision])
    model_set.models[version.spec.name].revisions.append(retiring)
    instance.apply(lifecycle_events.WantDown())
    model_set.add_instance(version).apply(lifecycle_events.WantUp())
