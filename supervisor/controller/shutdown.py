"""The orderly end: not ready, drained, workers told to leave, gateways closed, then the keeper is told."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING, Final

from mmsup.ipc import exit_codes
from mmsup.ipc.failpoints import faultpoint
from mmsup.ipc.messages import keeper_control
from mmsup.supervisor.instances import lifecycle_events
from mmsup.supervisor.instances.revision import Role

if TYPE_CHECKING:
    from mmsup.supervisor.controller.controller import Brain

WORKERS_S: Final = 5.0
"""What workers may take to unload, at least, however long the drain took."""
KILL_S: Final = 2.0
"""What the kernel may take to end workers that have not left by then."""
GATEWAYS_S: Final = 3.0
"""What gateways may take to close idle connections."""


async def end(brain: Brain) -> None:
    """Carry it out. Nothing here is waited for beyond its limit."""
    began_s = time.monotonic()
    brain.books.journal.record("stopping", "draining: accepted work is finished, new work is refused")
    brain.loads.refuse()
    brain.fleet.on_settled()
    faultpoint("brain.drain")
    drained = await brain.gateways.drain(brain.settings.exit_timeout_s)
    faultpoint("brain.drained")
    for model in brain.fleet.models.values():
        for edition in model.editions:
            if edition.role is not Role.LEAVING:
                brain.fleet.retire(edition)
    left_s = max(brain.settings.exit_timeout_s - (time.monotonic() - began_s), WORKERS_S)
    await brain.moved.until(lambda: not any(each.is_awaited() for each in brain.fleet.instances()), left_s)
    for instance in brain.fleet.instances():
        if instance.is_awaited():
            instance.apply(
                lifecycle_events.EndTimedOut()
            )  # who still waits for it is told so, instead of being cut off
    await brain.moved.until(lambda: not any(each.is_awaited() for each in brain.fleet.instances()), KILL_S)
    faultpoint("brain.emptied")
    for gateway in brain.gateways.everybody():
        brain.tell_keeper(keeper_control.Signal(gateway.token, signal.SIGTERM))
    await brain.moved.until(lambda: all(each.life is None for each in brain.gateways.everybody()), GATEWAYS_S)
    brain.books.wanted.clear()
    text = "drained" if drained else f"work was left after {brain.settings.exit_timeout_s:g} s"
    brain.books.journal.record("stopping", f"{text}; the server ends")
    faultpoint("brain.finish")
    brain.finish(exit_codes.DONE if drained else exit_codes.REFUSED)
