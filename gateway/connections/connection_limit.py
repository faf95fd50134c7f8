"""Connection limit of one listener: in total, and per client address; idle connections are evicted for new ones.

A connection costs a descriptor and some memory even if it is idle. At the limit, a connection that is between two
requests, or in the head of one, and was not used since the last check, is closed for the new one; only if none is found
the new one is refused. So a client that opens many connections and sends nothing keeps nobody out. One address may
have half of all connections, by the same rule.
"""

from __future__ import annotations

import resource
from typing import Final, Generic, Protocol, TypeVar

CONNECTION_LIMIT: Final = 8192
"""And at most half of the file descriptors: the others are for links to workers and the memory shared with them."""
RESERVED_FILES: Final = 48
"""Descriptors that connections leave free for links, however many links and how much memory there are."""
CHECKS: Final = 64
"""Connections checked to find one to evict."""


class LimitedConnection(Protocol):
    @property
    def uses(self) -> int:
        """Another number after each use."""
        ...

    @property
    def is_evictable(self) -> bool: ...

    def abort(self) -> None: ...


C = TypeVar("C", bound=LimitedConnection)


class ConnectionLimit(Generic[C]):
    """One per listener."""

    def __init__(self) -> None:
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.limit = max(min(CONNECTION_LIMIT, files // 2), 1)
        self._full_at = files - RESERVED_FILES
        self._by_address: dict[str, int] = {}
        self.connections: dict[C, tuple[str, int]] = {}
        """In the order of the checks; with the client address (empty: a UNIX socket) and `uses` at the last check."""

    def admit(self, connection: C, address: str, fd: int = 0) -> bool:
        """Count a new connection; False if it must be closed. `fd`: its descriptor, the lowest number that was free."""
        taken = self._by_address.get(address, 0)
        if address and taken >= max(self.limit // 2, 1):
            is_admitted = self._evict(address)
        else:
            is_full = len(self.connections) >= self.limit or fd >= self._full_at
            is_admitted = not is_full or self._evict("")
        self.connections[connection] = address, 0
        self._by_address[address] = self._by_address.get(address, 0) + 1
        return is_admitted

    def remove(self, connection: C) -> None:
        address, _ = self.connections.pop(connection, (None, 0))
        if address is not None:
            self._by_address[address] -= 1
            if not self._by_address[address]:
                del self._by_address[address]

    def _evict(self, address: str) -> bool:
        """Evict one connection, with an `address` one of it; whether one was found."""
        for _ in range(min(CHECKS, len(self.connections))):
            connection = next(iter(self.connections))
            origin, uses = self.connections.pop(connection)
            self.connections[connection] = origin, connection.uses  # checked again after all others
            if connection.uses == uses and connection.is_evictable and address in ("", origin):
                self.remove(connection)
                connection.abort()
                return True
        return False
