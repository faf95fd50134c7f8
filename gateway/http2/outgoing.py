"""What a connection sends: collected over one turn of the event loop, written at once."""

from __future__ import annotations

import asyncio


class Outgoing:
    __slots__ = ("_loop", "_parts", "_transport")

    def __init__(self, loop: asyncio.AbstractEventLoop, transport: asyncio.WriteTransport) -> None:
        self._loop = loop
        self._transport = transport
        self._parts: list[bytes] = []

    def write(self, *parts: bytes) -> None:
        if not self._parts:
            self._loop.call_soon(self.flush)
        self._parts += parts

    def flush(self) -> None:
        parts, self._parts = self._parts, []
        if parts and not self._transport.is_closing():
            self._transport.write(b"".join(parts))
