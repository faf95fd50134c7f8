"""When and how often each model was used, from what its workers count on their status pages anyway."""

from __future__ import annotations

from mmsup.ipc.memory.status_page import RUNNING
from mmsup.supervisor.instances.instance import Instance
from mmsup.supervisor.instances.lifecycle_events import InstanceState
from mmsup.supervisor.models.model import Model


class ModelUsage:
    def __init__(self) -> None:
        self._counted: dict[str, dict[tuple[int, int], int]] = {}
        """By model and worker: requests executed, as last seen."""

    def update(self, model: Model, now_s: float) -> None:
        """Take in what the workers of a model have counted since the last call."""
        ready = [each for each in model.instances() if each.state is InstanceState.READY and each.process is not None]
        if not ready:
            self._counted.pop(model.name, None)
            return
        before = self._counted.get(model.name, {})
        counted: dict[tuple[int, int], int] = {}
        is_used = False
        for instance in ready:
            assert instance.process is not None, f"instance {instance.id} has no process"
            progress = instance.process.progress()
            counted[instance.worker_id] = progress.requests
            is_used |= progress.activity in RUNNING or progress.requests != before.get(instance.worker_id, 0)
            is_used |= progress.open_streams > 0 or progress.sequences > 0  # their states would be lost
        self._counted[model.name] = counted
        if is_used:
            model.sleep.last_use_s = now_s
            model.sleep.use = model.sleep.use.used(now_s)


def live_sequences(model: Model) -> int:
    """At all its workers."""
    processes = [each.process for each in model.instances() if each.process is not None]
    return sum(each.progress().sequences for each in processes)


def ready_s(model: Model) -> float:
    """When the last of its workers became ready, or was restored."""
    workers = [(each.worker, each.revision) for each in model.instances() if each.worker is not None]
    return max((max(worker.ready_s, version.restored_s) for worker, version in workers), default=0.0)


def load_s(model: Model) -> float | None:
    """How long its last load took, from the start of the process; None if it was never loaded."""
    active = model.active
    found = [time for each in active.instances() if (time := _load_s(each)) is not None] if active is not None else []
    return max(found, default=model.sleep.load_s)


def _load_s(instance: Instance) -> float | None:
    worker = instance.worker
    return worker.ready_s - worker.spawned_s if worker is not None and worker.ready_s else None
