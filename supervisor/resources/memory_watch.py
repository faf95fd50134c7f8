"""Keeps the memory caps that no control group keeps: ends a worker that is above its cap with all that it started.

RLIMIT_DATA in the worker refuses what one process asks for beyond the cap, so what is found here is the sum of several.
Processes are those of the worker's session, or of its group where there is one without a memory controller.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mmsup.supervisor.config.units import size_text
from mmsup.supervisor.instances.instance import Instance
from mmsup.supervisor.instances.lifecycle_events import OutOfMemory
from mmsup.supervisor.linux.process_tree import session_members
from mmsup.supervisor.processes import usage


@dataclass(frozen=True, slots=True)
class UnheldCap:
    """A worker whose cap no control group keeps."""

    instance: Instance
    pid: int
    cap_bytes: int


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
    unheld = [found for found in map(_unheld_cap, instances) if found is not None]
    sessions = session_members(each.pid for each in unheld if each.instance.require_worker().group.folder is None)
    for each in unheld:
        pids = sessions[each.pid] if each.pid in sessions else each.instance.require_worker().group.pids()
        text = breach(each.pid, each.cap_bytes, usage.private_bytes(pids))
        if text and (text := breach(each.pid, each.cap_bytes, usage.proportional_bytes(pids))):
            each.instance.apply(OutOfMemory(text))


def _unheld_cap(instance: Instance) -> UnheldCap | None:
    worker, process, cap_bytes = instance.worker, instance.process, instance.revision.spec.memory_bytes
    if worker is None or process is None or process.is_dead or cap_bytes is None or worker.group.cap_bytes is not None:
        return None
    return UnheldCap(instance, process.pid, cap_bytes)
