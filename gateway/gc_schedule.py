"""When the oldest garbage of a gateway is collected: while no request is open, so that none waits for it. Pure.

Reference counts free nearly all; the collector finds the cycles, mostly of connections that ended. Its young
generations are small and go on by themselves. The oldest holds whatever the clients that are here keep alive, and
looking through it stops the loop for as long as that takes: so it waits for a pause, no more often than the collector
would come by itself. Under a load that never pauses the collector comes after OLDEST_THRESHOLD turns all the same:
a late reply is better than memory that only grows.
"""

from __future__ import annotations

from typing import Final

OLDEST_GENERATION_THRESHOLD: Final = 1000
"""Collections of the middle generation, each of some thousand objects, after which the oldest has its turn anyway."""
DUE_COLLECTIONS: Final = 10
"""The same, as the interpreter sets it by itself: before, there is not enough to look for."""
IDLE_HEARTBEATS: Final = 2
"""Looks in a row that found nothing open: one may fall between two requests of the same caller."""


class GcSchedule:
    """Asked at every beat of the loop."""

    def __init__(self) -> None:
        self._idle_heartbeats = 0

    def is_due(self, open_requests: int, turns: int) -> bool:
        """Whether to collect now. `turns`: collections of the middle generation since the last of the oldest."""
        self._idle_heartbeats = 0 if open_requests else self._idle_heartbeats + 1
        return turns >= DUE_COLLECTIONS and self._idle_heartbeats >= IDLE_HEARTBEATS
