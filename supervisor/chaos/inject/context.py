"""What injectors work with: the server, its clients, and the history."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from mmsup.supervisor.chaos.clients.load import LoadGenerator, RequestPurpose
from mmsup.supervisor.chaos.clients.protocol import FaultCommand, ProtocolAdapter
from mmsup.supervisor.chaos.observe.history import FaultInjected, History, RequestOutcome
from mmsup.supervisor.chaos.observe.worker_watch import WorkerWatch
from mmsup.supervisor.chaos.plan.catalog import asked_model
from mmsup.supervisor.chaos.plan.nemesis import PlannedFault
from mmsup.supervisor.chaos.server.target import Target

FAULT_PAYLOAD_VALUES: Final = 16
"""Number of values of a request that is part of a fault."""


@dataclass(frozen=True, slots=True)
class FaultContext:
    """The run that faults are injected into."""

    target: Target
    adapter: ProtocolAdapter
    load: LoadGenerator
    workers: WorkerWatch
    history: History
    revisions: dict[str, int]
    rpc_load: LoadGenerator | None = None
    """Set if requests go over gRPC as well."""
    files_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while a model's files are invalid, or a server starts that must find them valid."""

    def record_start(self, fault: PlannedFault, *, done: bool = True, note: str = "") -> None:
        """Record that a fault is injected now, or (not `done`) cannot be."""
        name = fault.fault_class.name
        self.history.add(FaultInjected(self.history.now(), fault.number, name, fault.victim, done, note))

    async def send_fault_request(self, fault: PlannedFault) -> RequestOutcome:
        command = FaultCommand(fault.fault_class.mode, fault.fault_class.amount)
        purpose = RequestPurpose(command, fault.number)
        model = asked_model(fault.fault_class, fault.victim)
        return await self.load.send(model, FAULT_PAYLOAD_VALUES, purpose=purpose)


Injector = Callable[[FaultContext, PlannedFault], Awaitable[str]]
"""Injects a fault; returns a note on how it ended."""
