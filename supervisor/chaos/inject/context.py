"""What a fault is brought about with, and how its beginning is written down; for whatever does one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from mmsup.supervisor.chaos.clients.load import Clients, Errand
from mmsup.supervisor.chaos.clients.protocol import Driver, Harm
from mmsup.supervisor.chaos.observe.history import History, Injected, Outcome
from mmsup.supervisor.chaos.observe.worker_watch import Lives
from mmsup.supervisor.chaos.plan.nemesis import Strike
from mmsup.supervisor.chaos.server.target import Target

SIZE: Final = 16
"""Values of a payload that does harm."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What injectors work with."""

    target: Target
    driver: Driver
    clients: Clients
    lives: Lives
    history: History
    revisions: dict[str, int]
    """The newest edition of each model that was laid out."""
    files: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while the models' files are not to be found by a server that starts."""

    def begin(self, strike: Strike, *, done: bool = True, note: str = "") -> None:
        """A fault is brought about now, or cannot be."""
        self.history.add(Injected(self.history.now(), strike.number, strike.fault.name, strike.victim, done, note))

    async def harm(self, strike: Strike) -> Outcome:
        """The request that does it."""
        fault = strike.fault
        errand = Errand(Harm(fault.mode, fault.amount), strike.number)
        return await self.clients.ask(strike.victim, SIZE, errand=errand)


Deed = Callable[[Scene, Strike], Awaitable[str]]
"""Does it, and returns when that is over, with a word on how it ended."""
