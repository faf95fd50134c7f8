"""Samples the memory of every worker once a second, for its crash report, its cap and for recycling."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence

from mmsup.supervisor.instances.instance import Instance
from mmsup.supervisor.instances.lifecycle_events import InstanceState
from mmsup.supervisor.postmortem.memory_history import EVERY_S
from mmsup.supervisor.processes import usage


class MemorySampler:
    def __init__(
        self, instances: Callable[[], Iterable[Instance]], on_sample: Callable[[Sequence[Instance]], None]
    ) -> None:
        self._instances = instances
        self._on_sample = on_sample
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(EVERY_S, self.start)
        instances = list(self._instances())
        for instance in instances:
            sample(instance)
        self._on_sample(instances)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


def sample(instance: Instance) -> None:
    """One sample of one worker, if it lives. Cheap: it reads one small file of the kernel."""
    worker, process = instance.worker, instance.process
    if worker is None or process is None or process.is_dead:
        return
    used = worker.group.usage_bytes()
    if used is None:
        used = usage.resident_bytes(process.pid)
    if used is not None:
        worker.memory_history.add(time.monotonic(), used, process.progress().device_bytes)
    if not worker.recycling.initial_bytes and instance.state is InstanceState.READY:
        worker.recycling.initial_bytes = usage.footprint_bytes(worker.group, process.pid) or 0
