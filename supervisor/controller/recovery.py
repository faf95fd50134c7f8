"""What one controller leaves to the next: the checkpoint, and how the next one takes over what it describes.

The models are restored as they were saved, without processes; then the keeper's children are adopted by token
(children.py); then instances that were saved as alive and have no child are treated as exited, and steps that were half
done are done again. Requests are not affected: nothing here touches a gateway.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from mmsup.ipc.memory.status_page import Activity
from mmsup.ipc.paths import is_worker_name, worker_name
from mmsup.ipc.transport.dataclass_codec import WireError
from mmsup.supervisor.controller.components import ControllerContext, Gateways, Models, Resources
from mmsup.supervisor.controller.upgrade_record import UpgradeRecord
from mmsup.supervisor.gateways.poison_requests import PoisonRecord
from mmsup.supervisor.gateways.pool import GatewayRecords, restore_gateways
from mmsup.supervisor.gpu.health import GpuRecord
from mmsup.supervisor.instances import actions, lifecycle_events, model_moves, worker_exit
from mmsup.supervisor.instances.instance import Instance
from mmsup.supervisor.instances.lifecycle_events import ALIVE, OFFLOADABLE, STARTING_UP, InstanceState, Situation
from mmsup.supervisor.instances.restart_policy import NOT_MENDED_BY_TIME
from mmsup.supervisor.models import revision_changes, startup_policy
from mmsup.supervisor.models.model_records import ModelRecord, restore_model
from mmsup.supervisor.models.model_set import ModelSet
from mmsup.supervisor.models.revision import Revision, RevisionRole
from mmsup.supervisor.runtime_settings.runtime_settings import SettingsRecord
from mmsup.supervisor.state.checkpoint import from_text

SERVER_KEY: Final = "server"
GATEWAYS_KEY: Final = "gateways"
GPUS_KEY: Final = "gpus"
LOST_CHECKPOINT: Final = (
    "the checkpoint of the controller before cannot be read by this version: every model is started anew, and restart "
    "counts, blocked requests and GPUs that were set aside are not known any more"
)


@dataclass(frozen=True, slots=True)
class ServerRecord:
    started_s: float
    is_announced: bool
    """READY has been announced."""
    next_instance_id: int


@dataclass(frozen=True, slots=True)
class GpuRecords:
    gpus: tuple[GpuRecord, ...]


_MOVED: Final = OFFLOADABLE | {InstanceState.RESTORING}
_KINDS: Final = (
    *(ServerRecord, ModelRecord, GatewayRecords, PoisonRecord, GpuRecords, UpgradeRecord),
    SettingsRecord,
)
CheckpointRecord = (
    ServerRecord | ModelRecord | GatewayRecords | PoisonRecord | GpuRecords | UpgradeRecord | SettingsRecord
)

_Kind = TypeVar("_Kind")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    server: ServerRecord
    records: Mapping[str, CheckpointRecord]

    def all_of(self, kind: type[_Kind]) -> tuple[_Kind, ...]:
        return tuple(each for each in self.records.values() if isinstance(each, kind))


def model_key(name: str) -> str:
    return f"model/{name}"


def read_checkpoint(texts: Mapping[str, str]) -> Checkpoint | None:
    """The checkpoint in these texts; None if there is none, or one of them is of another version of the code."""
    try:
        records = {key: from_text(text, _KINDS) for key, text in texts.items()}
    except WireError:
        return None
    server = records.get(SERVER_KEY)
    return Checkpoint(server, records) if isinstance(server, ServerRecord) else None


def restore(checkpoint: Checkpoint, models: Models, gateways: Gateways, resources: Resources) -> None:
    """Fill models, gateways and the rest as they were saved, without processes."""
    model_set = models.model_set
    for record in checkpoint.all_of(ModelRecord):
        restore_model(model_set, record)
    gateways.poison_requests.restore(checkpoint.all_of(PoisonRecord))
    for gpus in checkpoint.all_of(GpuRecords):
        resources.gpus.health.restore(gpus.gpus)
    model_set.next_instance_id = max(model_set.next_instance_id, checkpoint.server.next_instance_id)
    for records in checkpoint.all_of(GatewayRecords):
        restore_gateways(gateways.pool, records)


def take_over(context: ControllerContext, models: Models, checkpoint: Checkpoint, unknown_children: int) -> None:
    """All workers are adopted: go on where the controller before stopped."""
    model_set, event_log = models.model_set, context.state_dir.event_log
    number = context.inventory.generation
    event_log.record("brain_exit", f"controller {number - 1} ended; controller {number} takes over")
    startup_policy.register_all(models.watcher.scan(), models.context)
    for model in model_set.models.values():
        model.had_outcome = model.all_had_outcome = checkpoint.server.is_announced
    lives = [each.process is not None for each in model_set.instances() if each.state in ALIVE]
    kept, ended = lives.count(True), lives.count(False)
    _resume_instances(model_set)
    model_set.context.groups.adopted()
    _clean_up_unknown(model_set)
    text = f"kept {kept} workers; {ended} had ended, {unknown_children} unknown ones were killed"
    event_log.record("readopted", text, brain=number, kept=kept, ended=ended, strays=unknown_children)
    startup_policy.apply_desired_state(models.context, models.loader)


def _resume_instances(model_set: ModelSet) -> None:
    for model in list(model_set.models.values()):
        for revision in list(model.revisions):
            for instance in list(revision.instances()):
                _resume(instance, revision)
            if revision.role is RevisionRole.STAGED:
                revision_changes.retire(revision)  # the caller of this reload got an error
        model_set.mark_changed(model.name)


def _clean_up_unknown(model_set: ModelSet) -> None:
    """Remove control groups, scratch directories and sockets that belong to no known worker: the controller before died
    before it could record or clean them."""
    context = model_set.context
    workers = {each.worker_id: each.worker for each in model_set.instances() if each.worker is not None}
    shared = context.groups.names()
    groups = {worker.group.name for worker in workers.values()} | shared
    for name in set(context.cgroups.names()) - groups:
        if is_worker_name(name.partition("~")[0]):  # what follows the tilde was added by linux/cgroup.py
            context.cleanup.add(context.cgroups.group(name), "", "")
    known = {worker_name(*worker_id) for worker_id in workers} | shared
    scratch, runtime = context.launch_environment.scratch, context.settings.runtime_dir
    for name in {*_names_in(scratch), *_names_in(runtime)} - known:
        if is_worker_name(name):
            context.cleanup.add(None, str(Path(scratch) / name), str(Path(runtime) / name))


def _names_in(directory: str) -> list[str]:
    with contextlib.suppress(OSError):
        return os.listdir(directory)
    return []


def _resume(instance: Instance, revision: Revision) -> None:
    failure = instance.load_failure
    is_final = failure is not None and failure.code in NOT_MENDED_BY_TIME
    is_final = is_final or (instance.state is InstanceState.FAILED and not instance.retry.at_s)
    if instance.state in (InstanceState.BACKOFF, InstanceState.FAILED) and not is_final:
        actions.start_retry_timer(instance)
    if instance.state not in ALIVE:
        return
    if instance.process is None:
        worker_exit.vanished(instance)
        return
    before = instance.state
    instance.process.channel.drain()  # what it sent while there was no controller
    if instance.state is not before:
        return  # that was the next step
    leaving = worker_exit.leaving(instance)
    if leaving is Activity.LEFT:
        _forget_member(instance)
        return
    if instance.state is InstanceState.READY and instance.revision.metadata is not None:
        if revision.role is RevisionRole.ACTIVE:
            actions.link_to_gateways(instance)
    elif instance.state in (InstanceState.STARTING, InstanceState.READY) or _has_lost_ready(instance):
        _restart(instance)
    elif instance.state in _MOVED:
        model_moves.send_again(instance)
    elif instance.state is InstanceState.DRAINING:
        actions.perform(instance, lifecycle_events.StartDrain())
    elif instance.state in (InstanceState.STOPPING, InstanceState.QUARANTINED):
        actions.perform(instance, lifecycle_events.ExpectExit() if leaving else lifecycle_events.Kill())


def _has_lost_ready(instance: Instance) -> bool:
    """Its status page says that it serves, and its message of that went to a controller that died over it."""
    assert instance.process is not None, f"instance {instance.id} has no process"
    return instance.state in STARTING_UP and instance.process.has_served


def _forget_member(instance: Instance) -> None:
    """Its message that it has left its process went to a controller that died over it."""
    instance.require_worker().termination.stop_sent = True
    instance.situation = Situation(instance.situation.wanted, InstanceState.STOPPING)
    worker_exit.left(instance, instance.generation)


def _restart(instance: Instance) -> None:
    """It is unknown what it was sent, or what it sent. Its exit is not counted against its model."""
    assert instance.worker is not None, f"instance {instance.id} has no process"
    instance.worker.termination.killed_unwanted = True
    instance.situation = Situation(instance.situation.wanted, InstanceState.STOPPING)
    actions.perform(instance, lifecycle_events.Kill())
