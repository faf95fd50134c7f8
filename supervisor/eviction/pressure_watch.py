"""Looks twice a second whether memory runs short, and has models give some back before the kernel acts."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from typing import Final

from mmsup.ipc.memory.available_memory import available_bytes, total_bytes
from mmsup.supervisor.capacity.admission import Pool
from mmsup.supervisor.config.units import size_text
from mmsup.supervisor.eviction import pressure
from mmsup.supervisor.eviction.pressure import PressureFacts
from mmsup.supervisor.linux.memory_pressure import read_pressure
from mmsup.supervisor.observability.event_log import EventLog

CHECK_S: Final = 0.5
REPEAT_S: Final = 60.0
"""Until it is said again that there is nothing to give back."""


def read_facts(host: Callable[[], Pool]) -> PressureFacts:
    """`host`: the memory of the host, with what workers hold of it."""
    pool = host()
    over_bytes = pool.claimed() - pool.budget_bytes if pool.is_configured else 0
    leaving_bytes = pool.returning_bytes
    return PressureFacts(
        time.monotonic(), total_bytes(), available_bytes(), leaving_bytes, read_pressure(), max(over_bytes, 0)
    )


class PressureWatch:
    def __init__(
        self, read: Callable[[], PressureFacts], give_back: Callable[[int, str, str], int], event_log: EventLog
    ) -> None:
        """`give_back`: has models give so many bytes back, why and for which reason; says how many they hold."""
        self._read = read
        self._give_back = give_back
        self._event_log = event_log
        self._high_events: int | None = None
        """As last read; None before the first look: what was earlier is not known."""
        self._last_step_s = self._last_said_s = -math.inf

    async def run(self) -> None:
        """For ever."""
        while True:
            self.check()
            await asyncio.sleep(CHECK_S)

    def check(self) -> None:
        facts = self._read()
        before = facts.kernel.high_events if self._high_events is None else self._high_events
        self._high_events = facts.kernel.high_events
        found = pressure.relief(facts, before, self._last_step_s)
        if found is None:
            return
        if found.is_step:
            self._last_step_s = facts.at_s
        given = self._give_back(found.missing_bytes, found.why, found.reason)
        if given or facts.at_s >= self._last_said_s + REPEAT_S:
            self._last_said_s = facts.at_s
            text = f"{found.why}: models give {size_text(given)} back" if given else f"{found.why}: no model may go"
            self._event_log.record(
                "memory_pressure",
                text,
                missing_bytes=found.missing_bytes,
                given_bytes=given,
                available_bytes=facts.available_bytes,
                some_stalled=max(facts.kernel.machine.some, facts.kernel.own.some),
                full_stalled=max(facts.kernel.machine.full, facts.kernel.own.full),
            )
