"""Injects faults into models that sleep in host memory: while they leave, while they are away, while they come back.

Requests come all the while, and none may fail: those that meet a worker which ends wait for the next one.
"""

from __future__ import annotations

import asyncio
import signal
from typing import Final

from mmsup.supervisor.chaos.clients.load import RequestPurpose
from mmsup.supervisor.chaos.clients.protocol import FaultCommand
from mmsup.supervisor.chaos.inject.context import FAULT_PAYLOAD_VALUES, FaultContext
from mmsup.supervisor.chaos.plan.nemesis import PlannedFault

CLIENTS: Final = 3
PACE_S: Final = 0.05
POLL_S: Final = 0.01
STATE_LIMIT_S: Final = 10.0
_STATES: Final = {
    "kill_offloading": ("offloading", ""),
    "kill_offloaded": ("offloaded", ""),
    "kill_restoring": ("offloaded", "restoring"),
}
"""Of the victim's worker: in which one requests begin, and in which one it is killed, if that is another one."""


async def race_moves(context: FaultContext, fault: PlannedFault) -> str:
    """Move the model to host memory and back, again and again, while requests come."""
    context.record_start(fault)
    end_s = context.history.now() + fault.fault_class.duration_s

    async def move() -> None:
        while context.history.now() < end_s:
            await context.target.by_hand(fault.victim, "sleep", "wake")

    async with asyncio.TaskGroup() as group:
        group.create_task(move())
        for _ in range(CLIENTS):
            group.create_task(_ask_until(context, fault, end_s))
    return ""


async def failing_move(context: FaultContext, fault: PlannedFault) -> str:
    """Have the model raise or hang in its next move, of which its process ends."""
    await _arm(context, fault)
    context.record_start(fault)
    note = await context.target.by_hand(fault.victim, "sleep")
    if not note and "restore" in fault.fault_class.mode:
        await _await_state(context, fault, "offloaded")
    await _ask_together(context, fault)
    return note


async def kill_in_move(context: FaultContext, fault: PlannedFault) -> str:
    """Kill the worker in one of the states that it goes through."""
    await _arm(context, fault)
    first, then = _STATES[fault.fault_class.name]
    note = await context.target.by_hand(fault.victim, "sleep")
    if note or not await _await_state(context, fault, first):
        context.record_start(fault, done=False, note=note or f"it was never {first}")
        return ""
    async with asyncio.TaskGroup() as group:
        if then:
            group.create_task(_ask_together(context, fault))
            await _await_state(context, fault, then)
        context.record_start(fault)
        killed = context.workers.send_signal(fault.victim, signal.SIGKILL)
        if not then:
            group.create_task(_ask_together(context, fault))
    return "" if killed else "no worker"


async def _arm(context: FaultContext, fault: PlannedFault) -> None:
    """Tell the model what to do in its next move, with a request that is answered as any other."""
    await _ask(context, fault, FaultCommand(fault.fault_class.mode, fault.fault_class.amount))


async def _ask(context: FaultContext, fault: PlannedFault, command: FaultCommand | None = None) -> None:
    purpose = RequestPurpose(command, beside_fault=fault.number)
    await context.load.send(fault.victim, FAULT_PAYLOAD_VALUES, purpose=purpose)


async def _ask_together(context: FaultContext, fault: PlannedFault) -> None:
    async with asyncio.TaskGroup() as group:
        for _ in range(CLIENTS):
            group.create_task(_ask(context, fault))


async def _ask_until(context: FaultContext, fault: PlannedFault, end_s: float) -> None:
    while context.history.now() < end_s:
        await _ask(context, fault)
        await asyncio.sleep(PACE_S)


async def _await_state(context: FaultContext, fault: PlannedFault, state: str) -> bool:
    """Whether the victim's worker was seen in this state in time. Without a worker it has given up its memory."""
    until_s = context.history.now() + STATE_LIMIT_S
    while context.history.now() < until_s:
        states = await context.target.worker_states(fault.victim)
        if state in states or not states:
            return state in states
        await asyncio.sleep(POLL_S)
    return False
