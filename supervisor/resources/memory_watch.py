"""Keeps the memory caps that no control group keeps: ends a worker that is above its cap with all that it started.

RLIMIT_DATA in the worker refuses what one process asks for beyond the cap, so what is found here is the sum of several.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mmsup.supervisor.config.units import size_text
from mmsup.supervisor.instances.instance import Instance
from mmsup.supervisor.instances.lifecycle_events import OutOfMemory
from mmsup.supervisor.processes import usage
from mmsup.supervisor.resources.worker_processes import processes_of


def breach(pid: int, cap_bytes: int, held: Mapping[int, int]) -> str:
    """Why a worker is to be ended, if it is. `held`: the bytes of each of its processes, its own (`pid`) too. Pure."""
    total = sum(held.values())
    if total <= cap_bytes:
        return ""
    others = total - held.get(pid, 0)
    whose = f", {size_text(others)} of it in processes that it started" if others else ""
    return (
        f"it held {size_text(total)}{whose}: cap {size_text(cap_bytes)}; raise memory, lower max_batch_size or start "
        "fewer processes"
    )


def check_memory(instances: Sequence[Instance]) -> None:
    """End those that are above their cap. Called about once a second."""
    unheld = [each for each in instances if each.revision.spec.memory_bytes is not None and not _has_held_cap(each)]
    processes = processes_of(unheld)
    for each in unheld:
        pids, process, cap_bytes = processes.get(each.id, set()), each.process, each.revision.spec.memory_bytes
        if process is None or cap_bytes is None or not each.require_worker().is_suspect(each.worker_id):
            continue
        # What a child has not written to since its fork is the parent's: exact, and slow, only where it matters.
        text = breach(process.pid, cap_bytes, usage.private_bytes(pids))
        if text and (text := breach(process.pid, cap_bytes, usage.proportional_bytes(pids))):
            each.apply(OutOfMemory(text))


def _has_held_cap(instance: Instance) -> bool:
    return instance.worker is not None and instance.worker.group.cap_bytes is not None
