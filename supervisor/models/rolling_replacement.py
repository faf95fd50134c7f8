"""Replace one worker by a new one with the same content: the new one is ready before the old one is drained.

If the replacement does not become ready, the old worker stays, and the failure is not counted against its model. Where
memory does not hold both, the old one is drained first if the model has another ready instance; otherwise it stays.

Several replacements may be under way. Each has the memory of its new worker reserved until the old one has exited; a
replacement that finds no room beside these reservations waits for them. Of those that never find room, one at a time
drains its old worker first. Which workers are replaced is decided by recycling.py and controller/upgrade.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from mmsup.supervisor.config.units import size_text
from mmsup.supervisor.instances import lifecycle_events
from mmsup.supervisor.instances.instance import Instance, VersionRevision
from mmsup.supervisor.instances.lifecycle_events import STARTING_UP, InstanceState
from mmsup.supervisor.models import revision_changes
from mmsup.supervisor.models.model_set import ModelSet
from mmsup.supervisor.models.revision import Revision, RevisionRole

NO_ROOM_CODES: Final = frozenset(
    {"does_not_fit", "gpu_oom", "insufficient_gpu_memory", "insufficient_memory", "too_many_files"}
)
"""Load failures that mean that memory does not hold both."""
_DOWN: Final = (InstanceState.BACKOFF, InstanceState.FAILED, InstanceState.STOPPED, InstanceState.QUARANTINED)
WaitUntil = Callable[[Callable[[], bool]], Awaitable[None]]


class RollingReplacement:
    def __init__(self, model_set: ModelSet, wait_until: WaitUntil) -> None:
        self._model_set = model_set
        self._wait_until = wait_until
        self._under_way: set[int] = set()
        """Ids of the old instances."""
        self._reserved_bytes: dict[int, int] = {}
        """Memory of the new instances, by id of the old one."""
        self._drain_first = asyncio.Lock()

    def is_replacing(self, old: Instance) -> bool:
        return old.id in self._under_way

    async def replace(self, old: Instance) -> str:
        """Why the old worker stays; empty if another process follows it."""
        await self._wait_until(lambda: not self.is_replacing(old) and old.state not in STARTING_UP)
        self._under_way.add(old.id)
        try:
            return await self._replace(old)
        finally:
            self._under_way.remove(old.id)
            self._model_set.on_instance_changed(old)

    async def _replace(self, old: Instance) -> str:
        await self._wait_until(lambda: self._has_room(old) or not self._reserved_bytes)
        if not _is_ready(old):
            return ""  # it has exited by itself, and a new process follows
        required_bytes = self._model_set.memory.required_bytes(old) or 0
        if self._has_room(old):
            self._reserved_bytes[old.id] = required_bytes
            try:
                code, text = await self._start_beside(old)
            finally:
                del self._reserved_bytes[old.id]
        else:
            code, text = "does_not_fit", f"another {size_text(required_bytes)} is not free on this machine"
        if code not in NO_ROOM_CODES:
            return text
        async with self._drain_first:
            if not _is_ready(old):
                return ""
            if not any(each is not old and _is_ready(each) for each in old.revision.instances):
                return f"{text}; it is the only one that serves this model"
            return await self._restart_in_place(old)

    def _has_room(self, old: Instance) -> bool:
        return self._model_set.memory.has_room_for(old, sum(self._reserved_bytes.values()))

    async def _start_beside(self, old: Instance) -> tuple[str, str]:
        """Start the new instance, then drain the old one. Code and text of why it failed; empty if it did not."""
        version, generation = old.revision, old.generation
        if version.spec.group:
            self._model_set.context.groups.retire(old.worker_id)  # the new one is to be in another process
        staged = revision_changes.add_replacement(self._model_set, old)
        (new,) = staged.instances()

        def is_cancelled() -> bool:
            was_restarted = old.state is InstanceState.READY and old.generation > generation
            return was_restarted or old.revision is not version or self._is_cancelled(staged, version, new)

        await self._wait_until(lambda: new.state is InstanceState.READY or is_cancelled())
        if is_cancelled():
            if staged.role is RevisionRole.STAGED:
                revision_changes.retire(staged)
            return (new.failure.code, new.failure.text) if new.failure is not None else ("", "")
        revision_changes.adopt_replacement(self._model_set, staged, version)
        old.apply(lifecycle_events.WantDown())
        await self._wait_until(
            lambda: self._model_set.instance(old.id) is None or old.state is InstanceState.QUARANTINED
        )
        return "", ""

    def _is_cancelled(self, staged: Revision, version: VersionRevision, new: Instance) -> bool:
        """The new instance has failed, or its model was unloaded or reloaded meanwhile."""
        model = self._model_set.model(version.spec.name)
        active = model.active if model is not None else None
        is_current = active is not None and version in active.versions
        return staged.role is not RevisionRole.STAGED or new.state in _DOWN or not is_current

    async def _restart_in_place(self, old: Instance) -> str:
        """Drain the old worker and start its next process as the same instance."""
        generation = old.generation
        old.apply(lifecycle_events.WantDown())
        old.apply(lifecycle_events.WantUp())
        await self._wait_until(lambda: old.state in _DOWN or (_is_ready(old) and old.generation > generation))
        return "" if _is_ready(old) or old.failure is None else old.failure.text


def _is_ready(instance: Instance) -> bool:
    return instance.state is InstanceState.READY
