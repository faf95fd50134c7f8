"""How many bytes of messages one gateway holds that are being received, or not yet in a worker's memory. Pure."""

from __future__ import annotations


class ReceiveBudget:
    """`limit`: in bytes, over all connections."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.held_bytes = 0

    def take(self, size: int) -> bool:
        """False if there is no room for that."""
        if self.held_bytes + size > self._limit:
            return False
        self.held_bytes += size
        return True

    def give_back(self, size: int) -> None:
        self.held_bytes -= size
