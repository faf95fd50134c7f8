"""What a fault is brought about with, and how its beginning is written down; for whatever does one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from mmsup.supervisor.chaos.clients.load import LoadGenerator, RequestPurpose
from mmsup.supervisor.chaos.clients.protocol import FaultCommand, ProtocolAdapter
from mmsup.supervisor.chaos.observe.history import FaultInjected, History, RequestOutcome
from mmsup.supervisor.chaos.observe.worker_watch import WorkerWatch
from mmsup.supervisor.chaos.plan.nemesis import PlannedFault
from mmsup.supervisor.chaos.server.target import Target

FAULT_PAYLOAD_VALUES: Final = 16
"""Values of a payload that does harm."""


@dataclass(frozen=True, slots=True)
class FaultContext:
    """What injectors work with."""

    target: Target
    adapter: ProtocolAdapter
    load: LoadGenerator
    workers: WorkerWatch
    history: History
    revisions: dict[str, int]
    """The newest edition of each model that was laid out."""
    files_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while the models' files are not to be found by a server that starts."""

    def record_start(self, strike: PlannedFault, *, done: bool = True, note: str = "") -> None:
        """A fault is brought about now, or cannot be."""
        self.history.add(FaultInjected(self.history.now(), strike.number, strike.fault.name, strike.victim, done, note))

    async def send_fault_request(self, strike: PlannedFault) -> RequestOutcome:
        """The request that does it."""
        fault = strike.fault
        errand = RequestPurpose(FaultCommand(fault.mode, fault.amount), strike.number)
        return await self.load.send(strike.victim, FAULT_PAYLOAD_VALUES, purpose=errand)


Injector = Callable[[FaultContext, PlannedFault], Awaitable[str]]
"""Does it, and returns when that is over, with a word on how it ended."""
