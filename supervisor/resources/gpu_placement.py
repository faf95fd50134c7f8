"""Which GPU each worker sees, and whether it can be loaded there now.

While NVML has not answered yet a model's `device` is taken at its word; while it is silent nothing waits for it.
Decided elsewhere: which device (gpu.py), whether one is set aside (infirmary.py), whether memory is back (reclaim.py).
"""

from __future__ import annotations

import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

from mmsup.ipc.errors import CallerError
from mmsup.supervisor.config.units import size_text
from mmsup.supervisor.gpu import inventory, memory_release
from mmsup.supervisor.gpu.health_infirmary import GpuHealth
from mmsup.supervisor.gpu.monitor import GpuMonitor
from mmsup.supervisor.instances.lifecycle_events import InstanceState
from mmsup.supervisor.models.model_set import ModelSet

if TYPE_CHECKING:
    from mmsup.supervisor.instances.instance import Instance

Json = dict[str, Any]  # one JSON object
MAX_PENDING: Final = 64
"""Of one device; it may be long before NVML says that they are paid."""


class GpuPlacement:
    """What a load has to know of GPUs."""

    def __init__(self, fleet: ModelSet, lookout: GpuMonitor, infirmary: GpuHealth) -> None:
        self._model_set = fleet
        self._monitor = lookout
        self._health = infirmary
        self._pending: defaultdict[str, list[memory_release.PendingRelease]] = defaultdict(list)
        """By UUID: what is to come back."""
        self._needs: dict[tuple[str, str], int] = {}
        """By model and version: what its last worker held of a GPU when it was first seen to serve."""
        self._waiting: set[str] = set()
        """Models with a load that waits for the next look."""
        self._notified: set[int] = set()
        """Instances whose waiters know of it."""
        lookout.on_update = self._on_update

    # What a load asks.

    def assign(self, instance: Instance) -> str:
        """CUDA_VISIBLE_DEVICES for an instance that is about to be started; gpu.NoGpu if it cannot be had now."""
        word = self._choose(instance)
        verdict = self._check_memory(instance, word)
        self._notified.discard(instance.id)
        if isinstance(verdict, memory_release.InsufficientMemory):
            free, need = size_text(verdict.free_bytes), size_text(verdict.need_bytes)
            text = f"{self._monitor.label(word)} has {free} of memory free, and {need} are needed"
            raise inventory.NoGpuMemory(f"{text}: what a worker that ended held there is not back")
        return word

    def must_wait(self, instance: Instance) -> bool:
        """Whether its load has to wait for memory that is about to come back; asked again after each look."""
        try:
            word = self._choose(instance)
        except inventory.NoGpu:
            return False  # whoever starts it is told
        if not isinstance(self._check_memory(instance, word), memory_release.AwaitRelease):
            return False
        self._waiting.add(instance.revision.spec.name)
        if instance.id not in self._notified:
            self._notified.add(instance.id)
            instance.context.on_progress(instance, f"waiting for memory of {self._monitor.label(word)}")
        return True

    def _choose(self, instance: Instance) -> str:
        device, reasons = instance.revision.spec.device, self._health.cordoned
        return inventory.visible_devices(
            device, self._monitor.gpus, reasons, lambda uuid: self._load_of(instance, uuid)
        )

    def _load_of(self, instance: Instance, uuid: str) -> inventory.DeviceLoad:
        """Least where nothing is owed, most where it would be refused; then by faults; then by how many are there."""
        owes = (
            2
            if isinstance(self._check_memory(instance, uuid), memory_release.InsufficientMemory)
            else bool(self._pending[uuid])
        )
        return owes, self._health.fault_count(uuid), self._count_workers(uuid)

    def _check_memory(
        self, instance: Instance, word: str
    ) -> memory_release.AwaitRelease | memory_release.InsufficientMemory | None:
        device = self._monitor.find(word)
        if device is None:
            return None
        spec = instance.revision.spec
        need_bytes = self._needs.get((spec.name, spec.version), spec.gpu_memory_bytes)
        sight = memory_release.GpuSnapshot(device, self._monitor.asked_s)
        return memory_release.check_memory(need_bytes, self._pending[word], sight, time.monotonic())

    def _count_workers(self, word: str) -> int:
        tenures = (each.worker for each in self._model_set.instances())
        return sum(each is not None and each.visible_devices == word for each in tenures)

    # What becomes of workers.

    def on_ready(self, instance: Instance) -> None:
        """It is ready: see what it holds before it can die."""
        if instance.worker is not None and instance.worker.visible_devices:
            self._monitor.refresh()

    def on_fault(self, instance: Instance) -> None:
        """It left with a GPU fault."""
        assert instance.worker is not None, f"instance {instance.id} has left nothing"
        word = instance.worker.visible_devices
        known = inventory.find_gpu(self._monitor.gpus, word) if self._monitor.gpus is not None else None
        self._health.record_fault(known.uuid if known is not None else word, instance.revision.spec.name)

    def on_exit(self, instance: Instance) -> None:
        """Its process is gone, and its device has something to give back."""
        tenure, life = instance.worker, instance.process
        if tenure is not None and life is not None and tenure.visible_devices:
            debts = self._pending[tenure.visible_devices]
            debts.append(memory_release.PendingRelease(life.pid, tenure.gpu_usage, time.monotonic()))
            del debts[:-MAX_PENDING]
            self._monitor.refresh()

    # After a look.

    def _on_update(self) -> bool:
        self._health.check()
        for instance in self._model_set.instances():
            self._measure(instance)
        for word in self._pending:
            self._forget_released(word)
        self._model_set.retry(inventory.NoGpuMemory.code, self._fits_now)
        waiting, self._waiting = self._waiting, set()
        for name in waiting:
            self._model_set.mark_changed(name)
        return bool(waiting)

    def _measure(self, instance: Instance) -> None:
        """What a worker holds now, and what a fresh one of it needs."""
        tenure, life = instance.worker, instance.process
        device = self._monitor.find(tenure.visible_devices) if tenure is not None else None
        if tenure is None or life is None or life.is_dead or device is None:
            return
        tenure.gpu_usage = claim = memory_release.usage_of(life.pid, device, life.progress().device_bytes)
        if instance.state is InstanceState.READY and not tenure.has_initial_gpu_usage and claim.held_bytes:
            tenure.has_initial_gpu_usage = True
            self._needs[instance.revision.spec.name, instance.revision.spec.version] = claim.held_bytes

    def _forget_released(self, word: str) -> None:
        """Forget what has come back to a device, or never will."""
        device = self._monitor.find(word)
        if device is not None:
            sight = memory_release.GpuSnapshot(device, self._monitor.asked_s)
            self._pending[word] = [each for each in self._pending[word] if not memory_release.is_settled(each, sight)]

    def _fits_now(self, instance: Instance) -> bool:
        """Whether one that was refused would not be, now."""
        try:
            self.assign(instance)
        except inventory.NoGpu:
            return False
        return True

    # For people.

    def release(self, name: str) -> Json:
        """Somebody says that a device is well; CallerError if there is no such device."""
        gpus = self._monitor.gpus or inventory.Gpus((), "NVML has not answered yet")
        try:
            found = (
                [name] if name in self._health.cordoned else [each.uuid for each in inventory.candidates(name, gpus)]
            )
        except inventory.NoGpu as error:
            raise CallerError("bad_request", str(error)) from None
        released = [each for each in found if self._health.release(each)]
        if released:
            self._model_set.retry(inventory.GpuCordoned.code)
        return {"released": released}

    def rows(self) -> list[Json]:
        """All devices, one row each; what NVML does not say now is None."""
        gpus = self._monitor.gpus or inventory.Gpus(())
        places = {each.uuid: f"cuda:{place}" for place, each in enumerate(gpus.devices)}
        others = {word: word for word in self._health.cordoned if word not in places}
        return [self._row(word, device) for word, device in (places | others).items()]

    def _row(self, word: str, device: str) -> Json:
        learnt = self._monitor.gpus.find(word) if self._monitor.gpus is not None else None
        seen, asked_s = self._monitor.find(word), self._monitor.asked_s
        return {
            "device": device,
            "uuid": word,
            "name": learnt.name if learnt is not None else "",
            "set_aside": word in self._health.cordoned,
            "reason": self._health.cordoned.get(word, ""),
            "workers": self._count_workers(word),
            "stale": seen is None,
            "age_s": round(time.monotonic() - asked_s, 1) if asked_s else None,
            "memory_total_bytes": seen.total_bytes if seen is not None else None,
            "memory_used_bytes": seen.total_bytes - seen.free_bytes if seen is not None else None,
        }
