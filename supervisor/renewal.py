"""One worker made anew: another one of the same content is ready before the old one is let go.

The twin is a trial. If it does not come up, the old worker stays, and what became of the twin is not held against its
model. Where memory does not hold both, the old one goes first if the model has another that serves; else it stays.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from mmsup.supervisor import terms
from mmsup.supervisor.fleet import Fleet
from mmsup.supervisor.instance import Instance
from mmsup.supervisor.release import Edition, Release, Role
from mmsup.supervisor.terms import COMING_UP, State
from mmsup.supervisor.units import size_text

SPARE_BYTES: Final = 64 << 20
"""What the rest of the machine shall still have beside both."""
UNFIT: Final = frozenset({"does_not_fit", "gpu_oom", "insufficient_gpu_memory"})
"""Reasons of a load that say that two have no room."""
_ENDED: Final = (State.BACKOFF, State.FAILED, State.STOPPED, State.QUARANTINED)
Until = Callable[[Callable[[], bool]], Awaitable[None]]
"""Returns when something is so."""


class Way(Protocol):
    """How much memory there is, and what a worker takes; None where nobody knows. Bytes."""

    def available(self) -> int:
        """Of the machine."""
        ...

    def needs(self, instance: Instance) -> int | None:
        """Of one worker, now."""
        ...


def has_room(needs_bytes: int | None, available_bytes: int) -> bool:
    """Whether another one of that size fits beside what there is. Pure."""
    return needs_bytes is None or needs_bytes + SPARE_BYTES <= available_bytes


class Renewal:
    """Of one worker at a time."""

    def __init__(self, fleet: Fleet, until: Until, way: Way) -> None:
        self._fleet = fleet
        self._until = until
        self._way = way

    async def renew(self, old: Instance) -> str:
        """Why it stays; empty if another process follows it."""
        await self._until(lambda: old.state not in COMING_UP)
        if old.state is not State.READY:
            return ""  # it has ended by itself, and what follows is new
        needs = self._way.needs(old)
        if has_room(needs, self._way.available()):
            code, text = await self._beside(old)
        else:
            code, text = "does_not_fit", f"another {size_text(needs or 0)} is not free on this machine"
        if code not in UNFIT:
            return text
        if not _has_company(old):
            return f"{text}; it is the only one that serves this model"
        return await self._in_turn(old)

    async def _beside(self, old: Instance) -> tuple[str, str]:
        """Ready before the old one goes. Code and text of why not; empty if it is done."""
        release = old.release
        edition = self._fleet.beside(old)
        (twin,) = edition.instances()
        await self._until(lambda: twin.state is State.READY or self._is_off(edition, release, twin))
        if old.release is not release or self._is_off(edition, release, twin):  # else somebody else replaced it
            if edition.role is Role.COMING:
                self._fleet.retire(edition)
            trouble = twin.trouble
            return (trouble.code, trouble.text) if trouble is not None else ("", "")
        self._fleet.join(edition, release)
        old.apply(terms.WantDown())
        await self._until(lambda: self._fleet.instance(old.id) is None or old.state is State.QUARANTINED)
        return "", ""

    def _is_off(self, edition: Edition, release: Release, twin: Instance) -> bool:
        """The twin has failed, or nobody wants it any more: its model was unloaded, or loaded anew."""
        model = self._fleet.model(release.spec.name)
        current = model.current if model is not None else None
        return (
            edition.role is not Role.COMING
            or twin.state in _ENDED
            or current is None
            or release not in current.releases
        )

    async def _in_turn(self, old: Instance) -> str:
        """The old one drains, and its next life follows in the same place."""
        generation = old.generation
        old.apply(terms.WantDown())
        old.apply(terms.WantUp())
        await self._until(lambda: old.state in _ENDED or (old.state is State.READY and old.generation > generation))
        return "" if old.state is State.READY or old.trouble is None else old.trouble.text


def _has_company(old: Instance) -> bool:
    return any(each is not old and each.state is State.READY for each in old.release.instances)
