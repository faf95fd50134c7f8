"""When a gateway returns free memory to the system: once it has grown and no request is open for a while. Pure.

A body of unknown length (chunked, compressed) and a large JSON document are held in the gateway's own memory. glibc
keeps what was freed, up to 64 MiB at the end of the heap and all holes below; how much, depends on what was allocated
last. Returning it takes 0.5 ms for 25 MB in one piece and more for many holes, so it must not happen between two
requests of one client.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

IDLE_HEARTBEATS: Final = 20
"""Consecutive heartbeats without an open request: two seconds."""
GROWTH_BYTES: Final = 4 << 20
"""Less than this is not worth the time."""


class HeapSchedule:
    def __init__(self) -> None:
        self._idle_heartbeats = 0
        self._kept_bytes = 0
        """Private memory after it was last returned."""

    def is_due(self, open_requests: int, private_bytes: Callable[[], int]) -> bool:
        """Whether to return memory now. `private_bytes` is called every IDLE_HEARTBEATS heartbeats only."""
        self._idle_heartbeats = 0 if open_requests else self._idle_heartbeats + 1
        if self._idle_heartbeats < IDLE_HEARTBEATS:
            return False
        self._idle_heartbeats = 0
        return private_bytes() >= self._kept_bytes + GROWTH_BYTES

    def on_returned(self, private_bytes: int) -> None:
        self._kept_bytes = private_bytes
