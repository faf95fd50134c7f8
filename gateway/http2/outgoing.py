"""What a connection sends: collected over one turn of the event loop, written at once.

Data has to wait while the client does not read what was written, so that no more of it is copied.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

WRITE_HIGH_BYTES: Final = 1 << 21
"""What the client's socket may owe us, and about what one turn sends at most."""


class Outgoing:
    __slots__ = ("_data_bytes", "_loop", "_parts", "_transport", "data_writes", "is_paused", "on_room")

    def __init__(self, loop: asyncio.AbstractEventLoop, transport: asyncio.WriteTransport) -> None:
        self._loop = loop
        self._transport = transport
        self._parts: list[bytes] = []
        self._data_bytes = 0
        self.data_writes = 0
        """How many times data was sent."""
        self.is_paused = False
        """Whether the peer does not read what it was sent."""
        self.on_room: Callable[[], None] = lambda: None
        """Called when data need not wait any more."""

    @property
    def is_full(self) -> bool:
        """Whether data has to wait."""
        return self.is_paused or self._data_bytes >= WRITE_HIGH_BYTES

    def write(self, *parts: bytes) -> None:
        if not self._parts:
            self._loop.call_soon(self.flush)
        self._parts += parts

    def write_data(self, head: bytes, data: bytes) -> None:
        self._data_bytes += len(data)
        self.data_writes += 1
        self.write(head, data)

    def flush(self) -> None:
        parts, self._parts = self._parts, []
        was_full, self._data_bytes = self._data_bytes >= WRITE_HIGH_BYTES, 0
        if parts and not self._transport.is_closing():
            self._transport.write(b"".join(parts))
            if was_full and not self.is_paused:
                self.on_room()

    def pause(self) -> None:
        self.is_paused = True

    def resume(self) -> None:
        self.is_paused = False
        self.on_room()
