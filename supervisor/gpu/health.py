"""GPU health: counts workers' GPU faults, and cordons a GPU whose faults are not the fault of one model.

A GPU fault is as a rule the model's own doing (an index out of bounds in a kernel) and ends its process alone; a broken
GPU does the same to every process that uses it, and what a worker reports proves neither. So three faults cordon the
GPU if they are of more than one model, or if the driver itself counts memory errors there or no longer lists it. One
model alone is given up like any other that keeps crashing (instances/restart_policy.py).

Nothing new is placed on a cordoned GPU; workers there go on. It stays cordoned until somebody releases it or the server
ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from mmsup.supervisor.gpu.inventory import Gpu
from mmsup.supervisor.gpu.monitor import GpuMonitor
from mmsup.supervisor.observability.event_log import EventLog

MIN_FAULTS: Final = 3
PERIOD_S: Final = 600.0
MIN_MODELS: Final = 2


@dataclass(frozen=True, slots=True)
class GpuFault:
    """One worker exited with a GPU fault. `at_s`: monotonic seconds."""

    at_s: float
    model: str


@dataclass(frozen=True, slots=True)
class GpuRecord:
    device: str
    """What CUDA_VISIBLE_DEVICES of workers there holds, as a rule the UUID."""
    index: int
    """NVML's number; -1: NVML does not list it."""
    name: str
    reason: str
    """Why it is cordoned; empty if it is not."""
    faults: tuple[GpuFault, ...]


def recent_faults(faults: Sequence[GpuFault], now_s: float) -> tuple[GpuFault, ...]:
    """Those of the period, oldest first, at most MIN_FAULTS of each model, so that one in a loop hides no other."""
    recent = [each for each in faults if each.at_s > now_s - PERIOD_S]
    return tuple(each for at, each in enumerate(recent) if _count_of(recent[at + 1 :], each.model) < MIN_FAULTS)


def cordon_reason(faults: Sequence[GpuFault], driver_errors: str, now_s: float) -> str:
    """Why a GPU is to be cordoned; empty if it is not. `driver_errors`: what the driver counts against it."""
    counted = recent_faults(faults, now_s)
    models = sorted({each.model for each in counted})
    if len(counted) < MIN_FAULTS or (len(models) < MIN_MODELS and not driver_errors):
        return ""
    whose = f"workers of {', '.join(models)}"
    return f"{len(counted)} GPU faults within {PERIOD_S / 60:g} min, of {whose}" + (
        driver_errors and f"; {driver_errors}"
    )


def _count_of(faults: Sequence[GpuFault], model: str) -> int:
    return sum(each.model == model for each in faults)


class GpuHealth:
    """The faults and cordons of all GPUs, by what CUDA_VISIBLE_DEVICES holds."""

    def __init__(self, monitor: GpuMonitor, event_log: EventLog, on_change: Callable[[], None]) -> None:
        """`on_change`: the checkpoint is to be saved."""
        self.cordoned: dict[str, str] = {}
        """Why nothing new is placed there."""
        self._faults: dict[str, tuple[GpuFault, ...]] = {}
        self._monitor = monitor
        self._event_log = event_log
        self._on_change = on_change

    def record_fault(self, device: str, model: str) -> None:
        """A worker of this model exited there with a GPU fault. Its exit is about to save the checkpoint."""
        now_s = time.monotonic()
        self._faults[device] = recent_faults([*self._faults.get(device, ()), GpuFault(now_s, model)], now_s)
        self._check(device)

    def check(self) -> None:
        if any([self._check(device) for device in self._faults]):  # noqa: C419 - checks every one
            self._on_change()

    def _check(self, device: str) -> bool:
        """Cordon it if there is a reason; whether that is new."""
        reason = cordon_reason(self._faults[device], self._monitor.driver_errors(device), time.monotonic())
        if not reason or device in self.cordoned:
            return False
        self.cordoned[device] = reason
        text = f"{self._monitor.label(device)} is set aside: {reason}; workers there go on"
        self._event_log.record("device_set_aside", text, device=device)
        return True

    def release(self, device: str) -> bool:
        """Forget its faults; whether it had been cordoned."""
        self._faults.pop(device, None)
        if self.cordoned.pop(device, None) is None:
            return False
        text = f"{self._monitor.label(device)} was released by hand"
        self._event_log.record("device_released", text, device=device)
        self._on_change()
        return True

    def fault_count(self, device: str) -> int:
        return len(recent_faults(self._faults.get(device, ()), time.monotonic()))

    def records(self) -> tuple[GpuRecord, ...]:
        """For the checkpoint, in the order of the devices: the next controller numbers them as this one."""
        known = {each.uuid: each for each in self._monitor.gpus.devices} if self._monitor.gpus is not None else {}
        others = sorted((self._faults.keys() | self.cordoned.keys()) - known.keys())
        return tuple(self._record(device, known.get(device)) for device in (*known, *others))

    def _record(self, device: str, gpu: Gpu | None) -> GpuRecord:
        index, name = (gpu.index, gpu.name) if gpu is not None else (-1, "")
        return GpuRecord(device, index, name, self.cordoned.get(device, ""), self._faults.get(device, ()))

    def restore(self, records: tuple[GpuRecord, ...]) -> None:
        for each in records:
            self._faults[each.device] = each.faults
            if each.reason:
                self.cordoned[each.device] = each.reason
        self._monitor.restore([Gpu(each.index, each.device, each.name, 0) for each in records if each.index >= 0])
