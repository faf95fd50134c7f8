"""Looks at what every worker holds, once a second: for the record of its death, and for whoever looks along."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from mmsup.supervisor.instances.lifecycle_events import InstanceState
from mmsup.supervisor.postmortem.memory_history import EVERY_S
from mmsup.supervisor.processes import usage

if TYPE_CHECKING:
    from mmsup.supervisor.instances.instance import Instance


class MemorySampler:
    """Over all instances, from `start` to `close`."""

    def __init__(self, instances: Callable[[], Iterable[Instance]], look: Callable[[Instance], None]) -> None:
        """`look` is called with each one, after its sample."""
        self._instances = instances
        self._look = look
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Look now, and from then on."""
        self._timer = asyncio.get_running_loop().call_later(EVERY_S, self.start)
        for instance in self._instances():
            sample(instance)
            self._look(instance)

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()


def sample(instance: Instance) -> None:
    """One look at one worker, if it lives: a small file of the kernel's, and once what it held first."""
    tenure = instance.worker
    if tenure is None or tenure.process is None or tenure.process.is_dead:
        return
    used = tenure.group.usage_bytes()
    if used is None:
        used = usage.resident_bytes(tenure.process.pid)
    if used is not None:
        tenure.memory_history.add(time.monotonic(), used, tenure.process.progress().device_bytes)
    if not tenure.initial_bytes and instance.state is InstanceState.READY:
        tenure.initial_bytes = usage.footprint_bytes(tenure.group, tenure.process.pid) or 0
