"""Schedules collections of the oldest garbage generation: while no request is open, so that none waits for one. Pure.

Reference counts free nearly everything; the collector finds the cycles, mostly of closed connections. The young
generations are small and are collected by the interpreter. The oldest holds whatever the present clients keep alive,
and scanning it stops the event loop; so it waits for an idle moment, and runs no more often than the interpreter
would. Under a load without any pause it runs after OLDEST_GENERATION_THRESHOLD middle collections all the same: a
late reply is better than memory that only grows.
"""

from __future__ import annotations

from typing import Final

OLDEST_GENERATION_THRESHOLD: Final = 1000
"""Collections of the middle generation, each of some thousand objects, after which the oldest is collected anyway."""
DUE_COLLECTIONS: Final = 10
"""The interpreter's own default; with fewer there is not enough to collect."""
IDLE_HEARTBEATS: Final = 2
"""Consecutive heartbeats without an open request: a single one may fall between two requests of one client."""


class GcSchedule:
    def __init__(self) -> None:
        self._idle_heartbeats = 0

    def is_due(self, open_requests: int, collections: int) -> bool:
        """Whether to collect now. `collections`: of the middle generation since the last of the oldest."""
        self._idle_heartbeats = 0 if open_requests else self._idle_heartbeats + 1
        return collections >= DUE_COLLECTIONS and self._idle_heartbeats >= IDLE_HEARTBEATS
