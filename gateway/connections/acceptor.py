"""Accepts up to EXTRA_ACCEPTS connections per event-loop iteration, where the event loop accepts one.

The loop's own server accepts one connection per iteration (libuv since 1.46). Under load an iteration takes a
millisecond, and a client behind 256 others would wait for as many iterations. So after each connection that the server
has accepted, those waiting behind it are accepted too; if there are none, that costs one system call.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Final

BACKLOG: Final = 1024
EXTRA_ACCEPTS: Final = 16
"""Each takes about 0.1 ms."""


class ConnectionAcceptor:
    """For one socket, which it owns from `start` on. `make`: makes the protocol of each connection."""

    def __init__(self, sock: socket.socket, make: Callable[[], asyncio.BaseProtocol]) -> None:
        self._sock = sock
        self._make = make
        self._loop = asyncio.get_running_loop()
        self._server: asyncio.Server | None = None
        self._connect_tasks: set[asyncio.Task[None]] = set()
        self._is_scheduled = False

    async def start(self) -> None:
        self._sock.settimeout(0)
        self._server = await self._loop.create_server(self._on_connection, sock=self._sock, backlog=BACKLOG)

    def close(self) -> None:
        """Accept no more and close the socket; connections stay open."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def _on_connection(self) -> asyncio.BaseProtocol:
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._accept_more)
        return self._make()

    def _accept_more(self) -> None:
        self._is_scheduled = False
        for _ in range(EXTRA_ACCEPTS if self._server is not None else 0):
            try:
                client, _ = self._sock.accept()
            except OSError:
                return  # none is waiting; or no descriptor is free, which the server handles
            task = self._loop.create_task(self._connect(client))
            self._connect_tasks.add(task)
            task.add_done_callback(self._connect_tasks.discard)

    async def _connect(self, client: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._make, client)
        except OSError:
            client.close()  # the client has gone already
