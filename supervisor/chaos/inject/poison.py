"""A request that kills its worker each time, whose client sends it again and again, among others that do no harm.

All of them wait for the same worker, so that they are of one batch. Each client tries again as long as it is told that
something is wrong with the server: the innocent until they are served, the poison until it is refused, and a few times
more. The bytes are other ones each time that this is done: what is refused once does not stand in a later fault's way.
"""

from __future__ import annotations

import asyncio
from typing import Final

from mmsup.supervisor.chaos.clients.load import RequestPurpose
from mmsup.supervisor.chaos.clients.protocol import FaultCommand
from mmsup.supervisor.chaos.inject.context import FAULT_PAYLOAD_VALUES, FaultContext
from mmsup.supervisor.chaos.observe.history import RequestOutcome
from mmsup.supervisor.chaos.plan.catalog import QUARANTINED, RIGHT
from mmsup.supervisor.chaos.plan.fault_model import NO_FAULT
from mmsup.supervisor.chaos.plan.nemesis import PlannedFault

WORKER_BUSY_S: Final = 0.3
"""How long the worker is kept busy, so that what comes meanwhile waits together."""
BYSTANDERS: Final = 3
RETRY_S: Final = 0.3
MAX_ATTEMPTS: Final = 40
"""More than any pause of a restart takes."""
EXTRA_REFUSALS: Final = 3


async def poison(scene: FaultContext, strike: PlannedFault) -> str:
    """The whole of it; the last word that the poison was told."""
    scene.record_start(strike)
    async with asyncio.TaskGroup() as group:
        group.create_task(
            _send_until_final(
                scene, strike, RequestPurpose(FaultCommand("sleep", WORKER_BUSY_S), beside_fault=strike.number)
            )
        )
        await asyncio.sleep(WORKER_BUSY_S / 2)
        fault = strike.fault
        told = group.create_task(
            _send_until_final(scene, strike, RequestPurpose(FaultCommand(fault.mode, fault.amount), strike.number))
        )
        for _ in range(BYSTANDERS):
            group.create_task(
                _send_until_final(scene, strike, RequestPurpose(FaultCommand(NO_FAULT), beside_fault=strike.number))
            )
    return told.result().code or told.result().kind


async def _send_until_final(scene: FaultContext, strike: PlannedFault, errand: RequestPurpose) -> RequestOutcome:
    """The same request, until it is served or has been refused often enough; its last outcome."""
    first = outcome = await scene.load.send(strike.victim, FAULT_PAYLOAD_VALUES, purpose=errand)
    again = RequestPurpose(errand.command, errand.fault_number, errand.beside_fault, first.id)
    refused = int(outcome.code == QUARANTINED)
    for _ in range(MAX_ATTEMPTS):
        if outcome.kind == RIGHT or refused > EXTRA_REFUSALS:
            break
        await asyncio.sleep(RETRY_S)
        outcome = await scene.load.send(strike.victim, FAULT_PAYLOAD_VALUES, purpose=again)
        refused += outcome.code == QUARANTINED
    return outcome
