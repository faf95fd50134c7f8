"""One worker made anew: another one of the same content is ready before the old one is let go.

The twin is a trial. If it does not come up, the old worker stays, and what became of the twin is not held against its
model. Where memory does not hold both, the old one goes first if the model has another that serves; else it stays.

Many may be under way. Each twin is promised its memory until the old one is gone: who finds no room beside such
promises waits for them. Of those that have no room at all, one at a time goes first.
Who is to be renewed is decided elsewhere: the worn out by recycling.py, all that is old by upgrade.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from mmsup.supervisor.config.units import size_text
from mmsup.supervisor.instances import lifecycle_events
from mmsup.supervisor.instances.instance import Instance
from mmsup.supervisor.instances.lifecycle_events import STARTING_UP, InstanceState
from mmsup.supervisor.instances.revision import Revision, RevisionRole, VersionRevision
from mmsup.supervisor.models.model_set import ModelSet

NO_ROOM_CODES: Final = frozenset({"does_not_fit", "gpu_oom", "insufficient_gpu_memory"})
"""Reasons of a load that say that two have no room."""
_ENDED: Final = (InstanceState.BACKOFF, InstanceState.FAILED, InstanceState.STOPPED, InstanceState.QUARANTINED)
WaitUntil = Callable[[Callable[[], bool]], Awaitable[None]]
"""Returns when something is so."""


class RollingReplacement:
    """Those that are under way."""

    def __init__(self, fleet: ModelSet, until: WaitUntil) -> None:
        self._fleet = fleet
        self._until = until
        self._under_way: set[int] = set()
        """Numbers of old ones."""
        self._promised: dict[int, int] = {}
        """Bytes of their twins, by the same numbers."""
        self._turn = asyncio.Lock()
        """To go first."""

    def is_replacing(self, old: Instance) -> bool:
        """Whether this one is being renewed already."""
        return old.id in self._under_way

    async def replace(self, old: Instance) -> str:
        """Why it stays; empty if another process follows it."""
        await self._until(lambda: not self.is_replacing(old) and old.state not in STARTING_UP)
        self._under_way.add(old.id)
        try:
            return await self._renew(old)
        finally:
            self._under_way.remove(old.id)
            self._fleet.on_instance_changed(old)

    async def _renew(self, old: Instance) -> str:
        await self._until(lambda: self._has_room(old) or not self._promised)
        if not _serves(old):
            return ""  # it has ended by itself, and what follows is new
        needs = self._fleet.memory_headroom.required_bytes(old) or 0
        if self._has_room(old):
            self._promised[old.id] = needs
            try:
                code, text = await self._beside(old)
            finally:
                del self._promised[old.id]
        else:
            code, text = "does_not_fit", f"another {size_text(needs)} is not free on this machine"
        if code not in NO_ROOM_CODES:
            return text
        async with self._turn:
            if not _serves(old):
                return ""
            if not _has_company(old):
                return f"{text}; it is the only one that serves this model"
            return await self._in_turn(old)

    def _has_room(self, old: Instance) -> bool:
        return self._fleet.memory_headroom.has_room_for(old, sum(self._promised.values()))

    async def _beside(self, old: Instance) -> tuple[str, str]:
        """Ready before the old one goes. Code and text of why not; empty if it is done."""
        release, generation = old.revision, old.generation
        edition = self._fleet.add_replacement(old)
        (twin,) = edition.instances()

        def is_off() -> bool:
            has_followed = old.state is InstanceState.READY and old.generation > generation
            return has_followed or old.revision is not release or self._is_off(edition, release, twin)

        await self._until(lambda: twin.state is InstanceState.READY or is_off())
        if is_off():
            if edition.role is RevisionRole.STAGED:
                self._fleet.retire(edition)
            trouble = twin.failure
            return (trouble.code, trouble.text) if trouble is not None else ("", "")
        self._fleet.adopt_replacement(edition, release)
        old.apply(lifecycle_events.WantDown())
        await self._until(lambda: self._fleet.instance(old.id) is None or old.state is InstanceState.QUARANTINED)
        return "", ""

    def _is_off(self, edition: Revision, release: VersionRevision, twin: Instance) -> bool:
        """The twin has failed, or nobody wants it any more: its model was unloaded, or loaded anew."""
        model = self._fleet.model(release.spec.name)
        current = model.active if model is not None else None
        return (
            edition.role is not RevisionRole.STAGED
            or twin.state in _ENDED
            or current is None
            or release not in current.versions
        )

    async def _in_turn(self, old: Instance) -> str:
        """The old one drains, and its next life follows in the same place."""
        generation = old.generation
        old.apply(lifecycle_events.WantDown())
        old.apply(lifecycle_events.WantUp())
        await self._until(
            lambda: old.state in _ENDED or (old.state is InstanceState.READY and old.generation > generation)
        )
        return "" if old.state is InstanceState.READY or old.failure is None else old.failure.text


def _has_company(old: Instance) -> bool:
    return any(each is not old and _serves(each) for each in old.revision.instances)


def _serves(instance: Instance) -> bool:
    return instance.state is InstanceState.READY
