"""A model as it stands in the controller's checkpoint, and how the next controller makes it from there.

Made without processes: the keeper tells which of them live (controller/recovery.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from mmsup.ipc.specs import Metadata, ModelSpec
from mmsup.supervisor.instances.context import InstanceContext, WorkerFailure
from mmsup.supervisor.instances.instance import Instance, VersionRevision
from mmsup.supervisor.instances.lifecycle_events import ALIVE, InstanceState, Situation
from mmsup.supervisor.instances.worker_process import GpuAssignment, WorkerProcess
from mmsup.supervisor.models.model import Model
from mmsup.supervisor.models.model_set import ModelSet
from mmsup.supervisor.models.revision import Revision, RevisionRole
from mmsup.supervisor.models.sleep_state import FailedMove, SleepPhase, SleepReason, SleepState
from mmsup.supervisor.models.use_rate import UseRate
from mmsup.supervisor.processes.backoff import Exit


@dataclass(frozen=True, slots=True)
class InstanceRecord:
    instance: int
    generation: int
    wanted: bool
    state: str
    is_probe: bool
    retry_at_s: float
    spawned_s: float
    ready_s: float
    """When its process became ready; 0 if it did not."""
    failure: WorkerFailure | None
    condemned: WorkerFailure | None
    load_failure: WorkerFailure | None
    cgroup: str
    visible_devices: str
    offloaded_bytes: int
    """What it gave back of its device; 0 if it is not offloaded."""


@dataclass(frozen=True, slots=True)
class VersionRecord:
    spec: ModelSpec
    metadata: Metadata | None
    can_offload: bool
    restored_s: float
    exits: tuple[Exit, ...]
    instances: tuple[InstanceRecord, ...]


@dataclass(frozen=True, slots=True)
class RevisionRecord:
    role: str
    config: str
    stamp: str
    versions: tuple[VersionRecord, ...]


@dataclass(frozen=True, slots=True)
class KnownMetadata:
    version: str
    metadata: Metadata


@dataclass(frozen=True, slots=True)
class SleepRecord:
    phase: str
    reason: str
    since_s: float
    config: str
    stamp: str
    metadata: tuple[KnownMetadata, ...]
    load_s: float | None
    last_use_s: float
    use: UseRate
    detail: str
    failure: str
    failed_move: FailedMove | None


@dataclass(frozen=True, slots=True)
class ModelRecord:
    name: str
    wanted: bool
    sleep: SleepRecord
    revisions: tuple[RevisionRecord, ...]


def model_record(model: Model | None) -> ModelRecord | None:
    """The model as it is now; None if the next controller needs to know nothing of it."""
    if model is None or not (model.wanted or model.revisions):
        return None
    revisions = tuple(
        RevisionRecord(str(each.role), each.config, each.stamp, tuple(map(_version_record, each.versions)))
        for each in model.revisions
    )
    return ModelRecord(model.name, model.wanted, _sleep_record(model.sleep), revisions)


def _sleep_record(sleep: SleepState) -> SleepRecord:
    return SleepRecord(
        str(sleep.phase),
        str(sleep.reason),
        sleep.since_s,
        sleep.config,
        sleep.stamp,
        tuple(KnownMetadata(*each) for each in sleep.metadata.items()),
        sleep.load_s,
        sleep.last_use_s,
        sleep.use,
        sleep.detail,
        sleep.failure,
        sleep.failed_move,
    )


def _version_record(version: VersionRevision) -> VersionRecord:
    instances = tuple(map(_instance_record, version.instances))
    moves = version.can_offload, version.restored_s
    return VersionRecord(version.spec, version.metadata, *moves, tuple(version.exits), instances)


def _instance_record(instance: Instance) -> InstanceRecord:
    worker = instance.worker
    return InstanceRecord(
        instance=instance.id,
        generation=instance.generation,
        wanted=instance.situation.wanted,
        state=str(instance.state),
        is_probe=instance.retry.is_probe,
        retry_at_s=instance.retry.at_s,
        spawned_s=worker.spawned_s if worker else 0.0,
        ready_s=worker.ready_s if worker else 0.0,
        failure=instance.failure,
        condemned=worker.termination.condemned if worker else None,
        load_failure=worker.termination.load_failure if worker else None,
        cgroup=worker.group.name if worker else "",
        visible_devices=worker.gpu.device if worker else "",
        offloaded_bytes=worker.gpu.offloaded_bytes if worker else 0,
    )


def restore_model(model_set: ModelSet, record: ModelRecord) -> None:
    model = model_set.models.setdefault(record.name, Model(record.name, None))
    model.wanted = record.wanted
    model.sleep = _restored_sleep(record)
    for each in record.revisions:
        versions = [
            VersionRevision(of.spec, of.metadata, of.can_offload, of.restored_s, list(of.exits)) for of in each.versions
        ]
        model.revisions.append(Revision(RevisionRole(each.role), each.config, versions, each.stamp))
        for version, version_record in zip(versions, each.versions, strict=True):
            for instance_record in version_record.instances:
                instance = model_set.add_instance(version, instance_record.instance)
                _restore_instance(instance, instance_record, model_set.context)


def _restored_sleep(record: ModelRecord) -> SleepState:
    """A load from sleep that had not begun ended with the controller before: the next request asks for it again."""
    found, phase = record.sleep, SleepPhase(record.sleep.phase)
    has_begun = any(each.role == RevisionRole.ACTIVE for each in record.revisions)
    return SleepState(
        SleepPhase.ASLEEP if phase is SleepPhase.WAKING and not has_begun else phase,
        SleepReason(found.reason),
        found.since_s,
        found.config,
        found.stamp,
        {each.version: each.metadata for each in found.metadata},
        found.load_s,
        found.last_use_s,
        found.use,
        found.detail,
        found.failure,
        found.failed_move,
    )


def _restore_instance(instance: Instance, record: InstanceRecord, context: InstanceContext) -> None:
    instance.situation = Situation(record.wanted, InstanceState(record.state))
    instance.generation = record.generation
    instance.retry.is_probe = record.is_probe
    instance.retry.at_s = record.retry_at_s
    instance.is_queued = record.wanted and instance.state in (InstanceState.ABSENT, InstanceState.OFFLOADED)
    instance.failure = record.failure
    if instance.state in ALIVE:
        group, gpu = context.cgroups.group(record.cgroup), GpuAssignment(record.visible_devices)
        gpu.offloaded_bytes = record.offloaded_bytes
        worker = instance.worker = WorkerProcess(group, record.spawned_s, gpu)
        worker.ready_s = record.ready_s
        worker.is_linked = record.ready_s > 0 and instance.state is not InstanceState.OFFLOADED
        worker.termination.condemned = record.condemned
        worker.termination.load_failure = record.load_failure
        # A drain may have sent StopWorker already, and if not, it is about to.
        worker.termination.stop_sent = instance.state is InstanceState.DRAINING
