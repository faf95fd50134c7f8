"""Workers that are worn out are renewed while they serve: which ones says wear.py, how says renewal.py."""

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
from mmsup.supervisor.instances.revision import RevisionRole
from mmsup.supervisor.instances.worker_process import WorkerProcess
from mmsup.supervisor.models.model_set import ModelSet
from mmsup.supervisor.models.rolling_replacement import RollingReplacement
from mmsup.supervisor.processes import usage

RETRY_S: Final = 60.0
"""After one that could not be renewed, until it is tried again."""


class Recycler:
    """One per brain."""

    def __init__(self, fleet: ModelSet, renewals: RollingReplacement, start: Callable[[Any, str], object]) -> None:
        """`start` takes a coroutine and a name for it."""
        self._fleet = fleet
        self._renewals = renewals
        self._start = start

    def check(self, instance: Instance) -> None:
        """Renew it if it serves and is worn out. Called by the sampler at each of its looks."""
        tenure = instance.worker
        if tenure is None or instance.state is not InstanceState.READY or not self._may(instance, tenure):
            return
        limit_bytes = instance.revision.spec.recycle_memory_bytes
        reading = read_usage(tenure, counts_memory=limit_bytes is not None)
        reason = recycle_policy.recycle_reason(reading, limit_bytes)
        if reason:
            instance.record("recycle", f"{_said(reason, reading)}: another takes its place", reason=reason)
            self._start(self._renew(instance, tenure), f"recycle {instance.id}")

    async def _renew(self, instance: Instance, tenure: WorkerProcess) -> None:
        why = await self._renewals.replace(instance)
        if why:
            tenure.recycle_at_s = time.monotonic() + RETRY_S
            instance.record("recycle_failed", f"it stays: {why}")

    def _may(self, instance: Instance, tenure: WorkerProcess) -> bool:
        model = self._fleet.models[instance.revision.spec.name]
        return (
            instance.situation.wanted
            and model.active is not None
            and instance.revision in model.active.versions
            and model.revision(RevisionRole.STAGED) is None
            and not self._renewals.is_replacing(instance)
            and time.monotonic() >= tenure.recycle_at_s
        )


def read_usage(tenure: WorkerProcess, *, counts_memory: bool) -> recycle_policy.WorkerUsage:
    """What a life holds now; zeros if it is gone."""
    if tenure.process is None:
        return recycle_policy.WorkerUsage()
    held = usage.footprint_bytes(tenure.group, tenure.process.pid) or 0 if counts_memory else 0
    now_s = time.monotonic()
    refusals = tenure.refusals.record(tenure.process.progress().refused, now_s)
    return recycle_policy.WorkerUsage(
        held, tenure.initial_bytes, *open_files(tenure.process.pid), refusals, now_s - tenure.ready_s
    )


def open_files(pid: int) -> tuple[int, int]:
    """How many descriptors a process has open, and how many it may; zeros if it is gone."""
    folder = f"/proc/{pid}/fd"
    try:
        # Linux 6.2 and later tell the number as the size of the folder, which costs nothing to ask.
        count = os.stat(folder).st_size or len(os.listdir(folder))
        return count, resource.prlimit(pid, resource.RLIMIT_NOFILE)[0]
    except OSError:
        return 0, 0


def _said(reason: str, reading: recycle_policy.WorkerUsage) -> str:
    if reason == "rss":
        return f"it holds {size_text(reading.memory_bytes)}, and held {size_text(reading.initial_bytes)} at first"
    if reason == "gpu_oom":
        return f"{reading.refusals} requests found no device memory within {recycle_policy.PERIOD_S:g} s"
    return f"{reading.files} of {reading.files_limit} descriptors are open"
