"""Ends workers that got out of what holds them: out of their control group, or alive without a main thread.

A process that exits looks like both for a moment, under load for longer: threads that exit are not counted, and only
what two checks in a row find ends a worker.
"""

from __future__ import annotations

from mmsup.ipc.paths import WorkerId
from mmsup.supervisor.instances.instance import Instance
from mmsup.supervisor.instances.lifecycle_events import STARTING_UP, Event, HangDetected, ProtocolViolated
from mmsup.supervisor.linux.cgroup import has_lost_main_thread

LEFT_GROUP = "it has left its control group, which keeps its memory cap"
LOST_MAIN_THREAD = "its main thread has ended, and other threads keep the process alive"


class EscapedWorkers:
    def __init__(self) -> None:
        self._suspected: dict[int, WorkerId] = {}
        """By instance, the worker that the last check found outside."""

    def check(self, instance: Instance) -> None:
        """Called about once a second for each instance."""
        event = _escape(instance)
        if event is None:
            self._suspected.pop(instance.id, None)
        elif self._suspected.get(instance.id) == instance.worker_id:
            del self._suspected[instance.id]
            instance.apply(event)
        else:
            self._suspected[instance.id] = instance.worker_id


def _escape(instance: Instance) -> Event | None:
    """What its worker did, if it lives and is outside."""
    worker, process = instance.worker, instance.process
    if worker is None or process is None or process.is_dead:
        return None
    if not worker.group.holds(process.pid):  # as root it can move itself, and so past its memory cap
        return ProtocolViolated(LEFT_GROUP)
    if has_lost_main_thread(process.pid):  # it answers nothing any more
        is_loaded = instance.state not in STARTING_UP
        return HangDetected(LOST_MAIN_THREAD) if is_loaded else ProtocolViolated(LOST_MAIN_THREAD)
    return None
