"""Takes the connections of the gRPC front process, and owns them until the end."""

from __future__ import annotations

import asyncio
import contextlib

from mmsup.gateway.rpc.relay.relay_connection import OpenRelayedCall, RelayConnection


class RelayListener:
    """For the UNIX socket on which only the server's own front process connects."""

    def __init__(self, open_stream: OpenRelayedCall) -> None:
        self._open_stream = open_stream
        self._connections: set[RelayConnection] = set()
        self._changed = asyncio.Event()

    def __call__(self) -> RelayConnection:
        made = RelayConnection(self._open_stream, self._on_closed)
        self._connections.add(made)
        return made

    def _on_closed(self, connection: RelayConnection) -> None:
        self._connections.discard(connection)
        self._changed.set()

    @property
    def is_empty(self) -> bool:
        return not self._connections

    def retire(self) -> None:
        for connection in list(self._connections):
            connection.retire()

    def end_idle_streams(self) -> None:
        for connection in list(self._connections):
            connection.end_idle_streams()

    def pre_shutdown(self) -> None:
        self.retire()
        self.end_idle_streams()

    def on_tick(self, now_s: float) -> None:
        for connection in list(self._connections):
            connection.on_tick(now_s)

    async def shutdown(self, timeout: float) -> None:  # noqa: ASYNC109 - as the other listeners have it
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._wait_until_empty()
        for connection in list(self._connections):
            connection.abort()
        await self._wait_until_empty()

    async def _wait_until_empty(self) -> None:
        while not self.is_empty:
            self._changed.clear()
            await self._changed.wait()
