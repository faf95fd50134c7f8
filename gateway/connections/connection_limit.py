"""The connections of one listener: how many there may be, how many from one address, and who leaves for the next one.

A connection costs a descriptor and some memory, whatever it does. When all are taken, one that is between two requests,
or in the head of one, and was not used since it was last looked at, is closed for a new one; only if none is found the
new one is refused. So who opens many and sends nothing keeps nobody out. One address may have half of them all, by the
same rule.
"""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from mmsup.gateway.connections.fast_connection import FastConnection

CONNECTION_LIMIT: Final = 8192
RESERVED_FILES: Final = 256
"""Descriptors that are left for the gateway's own: links, memory, pages."""
CHECKS: Final = 64
"""Connections that are looked at to find one that may go."""


class ConnectionLimit:
    """One per listener."""

    def __init__(self) -> None:
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.limit = max(min(CONNECTION_LIMIT, files - RESERVED_FILES), 1)
        self._by_address: dict[str, int] = {}
        self.connections: dict[FastConnection, tuple[str, int]] = {}
        """Each with its address (empty: none that tells callers apart), and how often it had been used when it was last
        looked at; in the order in which they are looked at."""

    def admit(self, front: FastConnection, address: str) -> bool:
        """A client came; whether it may stay."""
        taken = self._by_address.get(address, 0)
        if address and taken >= max(self.limit // 2, 1):
            may = self._evict(address)
        else:
            may = len(self.connections) < self.limit or self._evict("")
        self.connections[front] = address, 0
        self._by_address[address] = self._by_address.get(address, 0) + 1
        return may

    def remove(self, front: FastConnection) -> None:
        """It is gone."""
        address, _ = self.connections.pop(front, (None, 0))
        if address is not None:
            self._by_address[address] -= 1
            if not self._by_address[address]:
                del self._by_address[address]

    def _evict(self, address: str) -> bool:
        """Whether room was made; with an `address` by one of its own."""
        for _ in range(min(CHECKS, len(self.connections))):
            front = next(iter(self.connections))
            origin, uses = self.connections.pop(front)
            self.connections[front] = origin, front.uses  # it is looked at again when all others have been
            if front.uses == uses and front.is_evictable and address in ("", origin):
                self.remove(front)
                front.abort()
                return True
        return False
