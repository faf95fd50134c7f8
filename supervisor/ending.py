"""The orderly end: not ready, drained, workers told to leave, gateways closed, then the keeper is told."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from mmsup.ipc import exits
from mmsup.supervisor.release import Role

if TYPE_CHECKING:
    from mmsup.supervisor.brain import Brain

WORKERS_S: Final = 5.0
"""What workers may take to unload, at least, however long the drain took."""
GATEWAYS_S: Final = 3.0
"""What gateways may take to close idle connections."""


async def end(brain: Brain) -> None:
    """Carry it out. Nothing here is waited for beyond its limit."""
    began_s = time.monotonic()
    brain.books.journal.record("stopping", "draining: accepted work is finished, new work is refused")
    brain.loads.refuse()
    brain.fleet.on_settled()
    drained = await brain.gateways.drain(brain.settings.exit_timeout_s)
    for model in brain.fleet.models.values():
        for edition in model.editions:
            if edition.role is not Role.LEAVING:
                brain.fleet.retire(edition)
    left_s = max(brain.settings.exit_timeout_s - (time.monotonic() - began_s), WORKERS_S)
    await _until(brain, lambda: not any(each.is_awaited() for each in brain.fleet.instances()), left_s)
    for gateway in brain.gateways.places:
        brain.signal(gateway.token, signal.SIGTERM)
    await _until(brain, lambda: all(each.life is None for each in brain.gateways.places), GATEWAYS_S)
    brain.books.wanted.clear()
    text = "drained" if drained else f"work was left after {brain.settings.exit_timeout_s:g} s"
    brain.books.journal.record("stopping", f"{text}; the server ends")
    brain.finish(exits.DONE)


async def _until(brain: Brain, is_so: Callable[[], bool], limit_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(limit_s):
            while not is_so():
                brain.moved.clear()
                await brain.moved.wait()
