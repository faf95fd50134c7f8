"""Places workers on GPUs: which one each sees, and whether it can be loaded there now.

Until NVML has answered for the first time the `device` of a model is passed on as it is; while NVML does not answer
nothing waits for it. Decided elsewhere: the choice (gpu/selection.py), cordons (gpu/health.py), memory
(gpu/memory_release.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mmsup.ipc.errors import CallerError
from mmsup.ipc.specs import ModelSpec
from mmsup.supervisor.config.units import size_text
from mmsup.supervisor.gpu import memory_release
from mmsup.supervisor.gpu.health import GpuHealth
from mmsup.supervisor.gpu.inventory import Gpus, find_gpu
from mmsup.supervisor.gpu.memory_release import AwaitRelease, GpuSnapshot, GpuUsage, InsufficientMemory, MemoryCheck
from mmsup.supervisor.gpu.monitor import GpuMonitor
from mmsup.supervisor.gpu.selection import DeviceLoad, GpuCordoned, NoGpu, NoGpuMemory, candidates, visible_devices
from mmsup.supervisor.instances.instance import Instance
from mmsup.supervisor.instances.lifecycle_events import InstanceState
from mmsup.supervisor.linux.cgroup import Cgroup
from mmsup.supervisor.models.model_set import ModelSet
from mmsup.supervisor.resources.device_rows import device_rows, workers_on
from mmsup.supervisor.resources.gpu_limits import limit_worker
from mmsup.supervisor.resources.gpu_watch import GpuWatch, has_gpu_open, is_in_first_pid_namespace

Json = dict[str, Any]  # one JSON object


class GpuPlacement:
    def __init__(self, model_set: ModelSet, monitor: GpuMonitor, health: GpuHealth) -> None:
        self._model_set = model_set
        self._monitor, self.why_no_gpu = monitor, monitor.why_no_gpu
        self._health = health
        self.has_dmem = False
        """Groups of workers limit the memory of devices."""
        self.missing_bytes: Callable[[ModelSpec, str], int] = lambda _, __: 0
        """What the budget of a GPU lacks for one more worker."""
        self._watch = GpuWatch(monitor, None if is_in_first_pid_namespace() else has_gpu_open)
        self._pending = memory_release.PendingReleases()
        self._needs: dict[tuple[str, str], int] = {}
        """By model and version: what its last worker held of a GPU when it was first measured ready."""
        self._waiting: set[str] = set()
        """Models with a load that waits for the next answer of NVML."""
        self._notified: set[int] = set()
        """Instances whose wait has been reported."""
        monitor.on_update = self._on_update

    def assign(self, instance: int, spec: ModelSpec) -> str:
        """CUDA_VISIBLE_DEVICES for a worker that is about to start; NoGpu if there is no GPU for it now."""
        device = self._choose(spec)
        found = self._check_memory(spec, device)
        self._notified.discard(instance)
        if isinstance(found, InsufficientMemory):
            free, need = size_text(found.free_bytes), size_text(found.need_bytes)
            text = f"{self._monitor.label(device)} has {free} of memory free, and {need} are needed"
            raise NoGpuMemory(f"{text}: what a worker that ended held there is not back")
        return device

    def must_wait(self, instance: int, spec: ModelSpec, on_progress: Callable[[str], None]) -> bool:
        """Whether its load has to wait for memory to be released; asked again after each answer of NVML."""
        try:
            device = self._choose(spec)
        except NoGpu:
            return False  # `assign` reports it
        if not isinstance(self._check_memory(spec, device), AwaitRelease):
            return False
        self._waiting.add(spec.name)
        if instance not in self._notified:
            self._notified.add(instance)
            on_progress(f"waiting for memory of {self._monitor.label(device)}")
        return True

    def expected(self, spec: ModelSpec) -> str:
        """What `assign` would give to one worker that started now; empty if there is no GPU for it."""
        try:
            device = self._choose(spec)
        except NoGpu:
            return ""
        return "" if isinstance(self._check_memory(spec, device), InsufficientMemory) else device

    def _choose(self, spec: ModelSpec) -> str:
        return visible_devices(
            spec.device, self._monitor.gpus, self._health.cordoned, lambda uuid: self._load_of(spec, uuid)
        )

    def _load_of(self, spec: ModelSpec, uuid: str) -> DeviceLoad:
        """First memory that is not released, most where the load would be refused; then room in the budget: where all
        have it, the fewest faults, then workers."""
        refused = isinstance(self._check_memory(spec, uuid), InsufficientMemory)
        pending = 2 if refused else int(self._pending.has_any(uuid))
        workers = len(workers_on(list(self._model_set.instances()), uuid))
        return pending, self.missing_bytes(spec, uuid), self._health.fault_count(uuid), workers

    def _check_memory(self, spec: ModelSpec, device: str) -> MemoryCheck:
        gpu = self._monitor.find(device)
        if gpu is None:
            return None
        need_bytes = self._needs.get((spec.name, spec.version), spec.gpu_memory_bytes)
        return self._pending.check(device, need_bytes, GpuSnapshot(gpu, self._monitor.asked_s))

    def limit(self, spec: ModelSpec, device: str, group: Cgroup) -> Mapping[str, str]:
        """Set the hard limits that there are for a worker on this device; what its environment needs for them."""
        return limit_worker(spec, self._monitor.find(device), group)

    def on_ready(self, device: str) -> None:
        """A worker there is ready: measure what it holds before it can die."""
        if device:
            self._monitor.refresh()

    def on_fault(self, device: str, model: str) -> None:
        known = find_gpu(self._monitor.gpus, device) if self._monitor.gpus is not None else None
        self._health.record_fault(known.uuid if known is not None else device, model)

    def on_exit(self, device: str, pid: int, usage: GpuUsage) -> None:
        self._pending.add(device, pid, usage)
        self._monitor.refresh()

    def _on_update(self) -> bool:
        self._health.check()
        instances = list(self._model_set.instances())
        is_watched = self._watch.look(instances)
        for instance in instances:
            self._note_need(instance)
        self._pending.settle(self._monitor.snapshots())
        self._model_set.retry(NoGpuMemory.code, lambda each: bool(self.expected(each.revision.spec)))
        waiting, self._waiting = self._waiting, set()
        for name in waiting:
            self._model_set.mark_changed(name)
        return bool(waiting) or is_watched

    def _note_need(self, instance: Instance) -> None:
        """What a fresh worker of its version needs: what this one held when it had just become ready."""
        worker = instance.worker
        if worker is None or instance.state is not InstanceState.READY or worker.gpu.is_measured:
            return
        if worker.gpu.usage.held_bytes:
            worker.gpu.is_measured = True
            self._needs[instance.revision.spec.name, instance.revision.spec.version] = worker.gpu.usage.held_bytes

    def release(self, name: str) -> Json:
        """Uncordon a device; CallerError if there is no such device."""
        gpus = self._monitor.gpus or Gpus((), self._monitor.why_no_gpu())
        try:
            found = [name] if name in self._health.cordoned else [each.uuid for each in candidates(name, gpus)]
        except NoGpu as error:
            raise CallerError("bad_request", str(error)) from None
        released = [each for each in found if self._health.release(each)]
        if released:
            self._model_set.retry(GpuCordoned.code)
        return {"released": released}

    def rows(self) -> list[Json]:
        """The status of all devices, and of cordoned ones that NVML does not list."""
        instances = list(self._model_set.instances())
        return device_rows(self._monitor, self._health, instances, has_dmem=self.has_dmem)
