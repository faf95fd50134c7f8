"""The processes of workers: each worker with all that it has started."""

from __future__ import annotations

from collections.abc import Iterable

from mmsup.supervisor.instances.instance import Instance
from mmsup.supervisor.linux.process_tree import session_members


def processes_of(instances: Iterable[Instance]) -> dict[int, set[int]]:
    """By instance, the pids of a living worker: those of its control group, else of its session (one scan of /proc)."""
    found: dict[int, set[int]] = {}
    leaders: dict[int, int] = {}
    for each in instances:
        worker, process = each.worker, each.process
        if worker is None or process is None or process.is_dead:
            continue
        if worker.group.folder is not None:
            found[each.id] = {process.pid} | worker.group.pids()
        else:
            leaders[each.id] = process.pid
    sessions = session_members(leaders.values())
    return found | {number: {pid} | sessions[pid] for number, pid in leaders.items()}
