"""Replaces workers that leak memory or descriptors while they serve.

When one has reached its limit is decided by instances/recycle_policy.py, how it is replaced by rolling_replacement.py.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from typing import Any, Final

from mmsup.supervisor.config.units import size_text
from mmsup.supervisor.instances import recycle_policy
from mmsup.supervisor.instances.instance import Instance
from mmsup.supervisor.instances.lifecycle_events import InstanceState
from mmsup.supervisor.instances.worker_process import WorkerProcess
from mmsup.supervisor.models.model_set import ModelSet
from mmsup.supervisor.models.revision import RevisionRole
from mmsup.supervisor.models.rolling_replacement import RollingReplacement
from mmsup.supervisor.processes import usage

RETRY_S: Final = 60.0
"""After a replacement that failed, until the next one of the same worker."""


class Recycler:
    def __init__(
        self, model_set: ModelSet, replacement: RollingReplacement, start_task: Callable[[Any, str], object]
    ) -> None:
        """`start_task` takes a coroutine and a name for it."""
        self._model_set = model_set
        self._replacement = replacement
        self._start_task = start_task

    def check(self, instance: Instance) -> None:
        """Replace the worker if it serves and has reached a limit. Called by the memory sampler at each sample."""
        worker = instance.worker
        if worker is None or instance.state is not InstanceState.READY or not self._may_replace(instance, worker):
            return
        spec = instance.revision.spec
        limit_bytes, cap_bytes = spec.recycle_memory_bytes, spec.memory_bytes or 0
        found = read_usage(worker, cap_bytes, counts_memory=limit_bytes is not None or bool(cap_bytes))
        reason = recycle_policy.recycle_reason(found, limit_bytes)
        if reason:
            instance.record("recycle", f"{_describe(reason, found)}: another takes its place", reason=reason)
            self._start_task(self._replace(instance, worker), f"recycle {instance.id}")

    async def _replace(self, instance: Instance, worker: WorkerProcess) -> None:
        failure = await self._replacement.replace(instance)
        if failure:
            worker.recycling.not_before_s = time.monotonic() + RETRY_S
            instance.record("recycle_failed", f"it stays: {failure}")

    def _may_replace(self, instance: Instance, worker: WorkerProcess) -> bool:
        model = self._model_set.models[instance.revision.spec.name]
        return (
            instance.situation.wanted
            and model.active is not None
            and instance.revision in model.active.versions
            and model.revision(RevisionRole.STAGED) is None
            and not self._replacement.is_replacing(instance)
            and time.monotonic() >= worker.recycling.not_before_s
        )


def read_usage(worker: WorkerProcess, cap_bytes: int, *, counts_memory: bool) -> recycle_policy.WorkerUsage:
    """What a worker uses now; zeros if it has exited."""
    if worker.process is None:
        return recycle_policy.WorkerUsage()
    pid, now_s = worker.process.pid, time.monotonic()
    is_held_by_limit = bool(cap_bytes) and worker.group.cap_bytes is None
    return recycle_policy.WorkerUsage(
        usage.footprint_bytes(worker.group, pid) or 0 if counts_memory else 0,
        worker.recycling.initial_bytes,
        cap_bytes,
        usage.data_bytes(pid) if is_held_by_limit else 0,
        *open_files(pid),
        worker.recycling.refusals.record(worker.process.progress().refused, now_s),
        now_s - worker.ready_s,
    )


def open_files(pid: int) -> tuple[int, int]:
    """How many descriptors a process has open, and how many it may have; zeros if it has exited."""
    folder = f"/proc/{pid}/fd"
    try:
        # Linux 6.2 and later report the number as the size of the directory, at no cost.
        count = os.stat(folder).st_size or len(os.listdir(folder))
        return count, resource.prlimit(pid, resource.RLIMIT_NOFILE)[0]
    except OSError:
        return 0, 0


def _describe(reason: str, found: recycle_policy.WorkerUsage) -> str:
    if reason == "rss":
        return f"it holds {size_text(found.memory_bytes)}, and held {size_text(found.initial_bytes)} at first"
    if reason == "gpu_oom":
        return f"{found.refusals} requests found no device memory within {recycle_policy.PERIOD_S:g} s"
    return f"{found.files} of {found.files_limit} descriptors are open"
