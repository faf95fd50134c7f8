"""Ends workers that hold more memory of their GPU than `gpu_memory` allows; decided by gpu/memory_excess.py.

Where the server is in a pid namespace of its own, a pid of NVML may be that of a stranger: it counts only if that
process has a device open.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence, Set
from typing import Final

from mmsup.supervisor.config.units import size_text
from mmsup.supervisor.gpu.memory_excess import ExcessCounter, GpuBudget
from mmsup.supervisor.gpu.memory_release import usage_of
from mmsup.supervisor.gpu.monitor import GpuMonitor
from mmsup.supervisor.instances.instance import Instance
from mmsup.supervisor.instances.lifecycle_events import GpuMemoryExceeded
from mmsup.supervisor.resources.worker_processes import processes_of

_FIRST_PID_NAMESPACE: Final = 0xEFFFFFFC  # linux/proc_ns.h: PROC_PID_INIT_INO
_DEVICES: Final = ("/dev/nvidia", "/dev/dxg")


class GpuWatch:
    def __init__(self, monitor: GpuMonitor, has_device_open: Callable[[int], bool] | None = None) -> None:
        """`has_device_open`: asked for each process that NVML shows; None: whatever it shows is ours."""
        self._monitor = monitor
        self._has_device_open = has_device_open
        self._excess = ExcessCounter()
        self._seen_s = 0.0
        """When NVML was asked for the last answer that was looked at."""

    def look(self, instances: Sequence[Instance]) -> bool:
        """Note what each worker holds, and end those that hold too much; whether the next answer is wanted soon."""
        here = [each for each in instances if each.worker is not None and self._monitor.find(each.worker.gpu.device)]
        processes = processes_of(here)
        budgets: dict[tuple[int, int], GpuBudget] = {}
        for each in here:
            if each.id in processes:
                self._measure(each, processes[each.id])
                if each.revision.spec.gpu_memory_bytes and self._monitor.asked_s > each.require_worker().spawned_s:
                    held = each.require_worker().gpu.usage
                    budgets[each.worker_id] = GpuBudget(held, each.revision.spec.gpu_memory_bytes)
        if self._monitor.asked_s > self._seen_s:  # else it has not answered since
            self._seen_s = self._monitor.asked_s
            ended = self._excess.look(budgets)
            for each in here:
                if each.worker_id in ended and each.require_worker().is_suspect(each.worker_id):
                    each.apply(GpuMemoryExceeded(self._text(each, budgets[each.worker_id])))
        return bool(budgets)

    def _measure(self, instance: Instance, pids: Set[int]) -> None:
        worker, process = instance.require_worker(), instance.process
        gpu = self._monitor.find(worker.gpu.device)
        assert gpu is not None, "its device was found"
        assert process is not None, "it lives"
        ours = {each.pid for each in gpu.held if each.pid in pids and self._is_ours(each.pid)}
        worker.gpu.usage = usage_of(ours, gpu, process.progress().device_bytes)

    def _is_ours(self, pid: int) -> bool:
        return self._has_device_open is None or self._has_device_open(pid)

    def _text(self, instance: Instance, budget: GpuBudget) -> str:
        label = self._monitor.label(instance.require_worker().gpu.device)
        return (
            f"it held {size_text(budget.held.held_bytes)} of {label} as NVML counts: gpu_memory is "
            f"{size_text(budget.budget_bytes)}; raise it, or let the model ask its framework for less"
        )


def is_in_first_pid_namespace() -> bool:
    """Whether the pids that the driver knows are those that this process sees."""
    return os.stat("/proc/self/ns/pid").st_ino == _FIRST_PID_NAMESPACE


def has_gpu_open(pid: int) -> bool:
    """Whether a process has a device of the NVIDIA driver open."""
    with contextlib.suppress(OSError):
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{pid}/fd/{fd}").startswith(_DEVICES):
                    return True
    return False
