"""The GPUs on which contexts were lost, and those that are set aside for it. What sets one aside is said by aside.py.

Nothing new goes to a device that is set aside; whoever serves there goes on. It stays so until somebody releases it, or
the server ends: the brain tells its successor.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from mmsup.supervisor.gpu import health
from mmsup.supervisor.gpu.inventory import Gpu
from mmsup.supervisor.gpu.monitor import GpuMonitor
from mmsup.supervisor.observability.event_log import EventLog
from mmsup.supervisor.state.checkpoint import GpuFaultRecord, GpuRecord


class GpuHealth:
    """By what stands in CUDA_VISIBLE_DEVICES, as a rule a UUID."""

    def __init__(self, lookout: GpuMonitor, journal: EventLog, changed: Callable[[], None]) -> None:
        """`changed`: what is to be remembered is not as it was."""
        self.cordoned: dict[str, str] = {}
        """Why nothing new goes there."""
        self._faults: dict[str, tuple[health.GpuFault, ...]] = {}
        self._monitor = lookout
        self._event_log = journal
        self._on_change = changed

    def record_fault(self, word: str, model: str) -> None:
        """A worker of this model left that device with a GPU fault."""
        now_s = time.monotonic()
        fault = health.GpuFault(now_s, model)
        self._faults[word] = health.recent_faults([*self._faults.get(word, ()), fault], now_s)
        self._check(word)  # the end of that life is about to be remembered, and this with it

    def check(self) -> None:
        """NVML has said something new of them."""
        if any([self._check(word) for word in self._faults]):  # noqa: C419 - of each
            self._on_change()

    def _check(self, word: str) -> bool:
        """Whether it is set aside from now on."""
        reason = health.cordon_reason(self._faults[word], self._monitor.driver_errors(word), time.monotonic())
        if not reason or word in self.cordoned:
            return False
        self.cordoned[word] = reason
        text = f"{self._monitor.label(word)} is set aside: {reason}; whoever serves there goes on"
        self._event_log.record("device_set_aside", text, device=word)
        return True

    def release(self, word: str) -> bool:
        """Somebody says that it is well; whether it had been set aside."""
        self._faults.pop(word, None)
        if self.cordoned.pop(word, None) is None:
            return False
        self._event_log.record("device_released", f"{self._monitor.label(word)} was released by hand", device=word)
        self._on_change()
        return True

    def fault_count(self, word: str) -> int:
        """Faults there that still count."""
        return len(health.recent_faults(self._faults.get(word, ()), time.monotonic()))

    def records(self) -> tuple[GpuRecord, ...]:
        """All of it, to be remembered, with the devices in their order: the next brain numbers them as this one."""
        known = {each.uuid: each for each in self._monitor.gpus.devices} if self._monitor.gpus is not None else {}
        others = sorted((self._faults.keys() | self.cordoned.keys()) - known.keys())
        return tuple(self._record(word, known.get(word)) for word in (*known, *others))

    def _record(self, word: str, known: Gpu | None) -> GpuRecord:
        faults = tuple(GpuFaultRecord(each.at_s, each.model) for each in self._faults.get(word, ()))
        index, name = (known.index, known.name) if known is not None else (-1, "")
        return GpuRecord(word, index, name, self.cordoned.get(word, ""), faults)

    def restore(self, notes: tuple[GpuRecord, ...]) -> None:
        """As the brain before us left it."""
        for note in notes:
            self._faults[note.device] = tuple(health.GpuFault(each.at_s, each.model) for each in note.faults)
            if note.reason:
                self.cordoned[note.device] = note.reason
        self._monitor.restore([Gpu(each.index, each.device, each.name, 0) for each in notes if each.index >= 0])
