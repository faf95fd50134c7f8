"""What one of several loops in one process waits for."""

from __future__ import annotations

import select


class SharedPoller:
    """In the place of `select.poll`: it never sleeps, and has a descriptor by which many of them are waited for."""

    def __init__(self) -> None:
        self._epoll = select.epoll()

    def fileno(self) -> int:
        return self._epoll.fileno()

    def register(self, fd: int, events: int) -> None:
        self._epoll.register(fd, events)

    def unregister(self, fd: int) -> None:
        self._epoll.unregister(fd)

    def poll(self, _timeout_ms: float) -> list[tuple[int, int]]:
        """What there is now; whoever turns the loop has slept."""
        return self._epoll.poll(0)

    def close(self) -> None:
        self._epoll.close()
