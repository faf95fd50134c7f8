"""Injects a poison request: it kills its worker each time, is repeated by its client, and shares batches with others.

All of the requests wait for the same busy worker, so that they form one batch. Each client repeats its request while it
gets retryable errors: bystanders until they are served, the poison until it is refused, and some times more. Every
poison has other bytes, so that the refusal of one does not affect a later one.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Final

from mmsup.supervisor.chaos.clients.load import RequestPurpose
from mmsup.supervisor.chaos.clients.protocol import FaultCommand
from mmsup.supervisor.chaos.inject.context import FAULT_PAYLOAD_VALUES, FaultContext
from mmsup.supervisor.chaos.observe.history import RequestOutcome
from mmsup.supervisor.chaos.plan.catalog import QUARANTINED, RIGHT
from mmsup.supervisor.chaos.plan.fault_model import NO_FAULT
from mmsup.supervisor.chaos.plan.nemesis import PlannedFault

WORKER_BUSY_S: Final = 0.3
"""How long the worker is kept busy, so that the following requests are batched."""
BYSTANDERS: Final = 3
RETRY_S: Final = 0.3
MAX_ATTEMPTS: Final = 40
"""Together longer than any restart backoff."""
EXTRA_REFUSALS: Final = 3


async def poison(context: FaultContext, fault: PlannedFault) -> str:
    """Send poison and bystanders; returns the last error code of the poison."""
    context.record_start(fault)
    command = FaultCommand(fault.fault_class.mode, fault.fault_class.amount)
    async with asyncio.TaskGroup() as group:
        busy = RequestPurpose(FaultCommand("sleep", WORKER_BUSY_S), beside_fault=fault.number)
        group.create_task(_send_until_final(context, fault, busy))
        await asyncio.sleep(WORKER_BUSY_S / 2)
        last = group.create_task(_send_until_final(context, fault, RequestPurpose(command, fault.number)))
        for _ in range(BYSTANDERS):
            bystander = RequestPurpose(FaultCommand(NO_FAULT), beside_fault=fault.number)
            group.create_task(_send_until_final(context, fault, bystander))
    return last.result().code or last.result().kind


async def _send_until_final(context: FaultContext, fault: PlannedFault, purpose: RequestPurpose) -> RequestOutcome:
    """Repeat a request until it is served or has been refused EXTRA_REFUSALS times more; its last outcome."""
    first = outcome = await context.load.send(fault.victim, FAULT_PAYLOAD_VALUES, purpose=purpose)
    again = replace(purpose, repeats=first.id)
    refused = int(outcome.code == QUARANTINED)
    for _ in range(MAX_ATTEMPTS):
        if outcome.kind == RIGHT or refused > EXTRA_REFUSALS:
            break
        await asyncio.sleep(RETRY_S)
        outcome = await context.load.send(fault.victim, FAULT_PAYLOAD_VALUES, purpose=again)
        refused += outcome.code == QUARANTINED
    return outcome
