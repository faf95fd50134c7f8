"""A request that kills its worker each time, whose client sends it again and again, among others that do no harm.

All of them wait for the same worker, so that they are of one batch. Each client tries again as long as it is told that
something is wrong with the server: the innocent until they are served, the poison until it is refused, and a few times
more. The bytes are other ones each time that this is done: what is refused once does not stand in a later fault's way.
"""

from __future__ import annotations

import asyncio
from typing import Final

from mmsup.supervisor.chaos.clients.load import Errand
from mmsup.supervisor.chaos.clients.protocol import Harm
from mmsup.supervisor.chaos.inject.context import SIZE, Scene
from mmsup.supervisor.chaos.observe.history import Outcome
from mmsup.supervisor.chaos.plan.catalog import QUARANTINED, RIGHT
from mmsup.supervisor.chaos.plan.fault_model import OK
from mmsup.supervisor.chaos.plan.nemesis import Strike

HELD_S: Final = 0.3
"""How long the worker is kept busy, so that what comes meanwhile waits together."""
INNOCENTS: Final = 3
AGAIN_S: Final = 0.3
TRIES: Final = 40
"""More than any pause of a restart takes."""
REFUSALS: Final = 3


async def poison(scene: Scene, strike: Strike) -> str:
    """The whole of it; the last word that the poison was told."""
    scene.begin(strike)
    async with asyncio.TaskGroup() as group:
        group.create_task(_insist(scene, strike, Errand(Harm("sleep", HELD_S), along=strike.number)))
        await asyncio.sleep(HELD_S / 2)
        fault = strike.fault
        told = group.create_task(_insist(scene, strike, Errand(Harm(fault.mode, fault.amount), strike.number)))
        for _ in range(INNOCENTS):
            group.create_task(_insist(scene, strike, Errand(Harm(OK), along=strike.number)))
    return told.result().code or told.result().kind


async def _insist(scene: Scene, strike: Strike, errand: Errand) -> Outcome:
    """The same request, until it is served or has been refused often enough; its last outcome."""
    first = outcome = await scene.clients.ask(strike.victim, SIZE, errand=errand)
    again = Errand(errand.harm, errand.strike, errand.along, first.id)
    refused = int(outcome.code == QUARANTINED)
    for _ in range(TRIES):
        if outcome.kind == RIGHT or refused > REFUSALS:
            break
        await asyncio.sleep(AGAIN_S)
        outcome = await scene.clients.ask(strike.victim, SIZE, errand=again)
        refused += outcome.code == QUARANTINED
    return outcome
