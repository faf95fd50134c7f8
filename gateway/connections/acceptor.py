"""Who comes to a listening socket is taken in, many at a turn of the loop if many have come.

The loop's own server takes one connection a turn (libuv since 1.46). While a flood is served a turn lasts a
millisecond, and who comes behind 256 others would wait for as many turns. So after each one that the server took, those
that wait behind it are taken too, up to EXTRA; if nobody waits, that costs one system call.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Final

BACKLOG: Final = 1024
EXTRA_ACCEPTS: Final = 16
"""Connections, each some 0.1 ms."""


class ConnectionAcceptor:
    """Of one socket, which it owns from `start` on. `make`: gives each connection its protocol."""

    def __init__(self, sock: socket.socket, make: Callable[[], asyncio.BaseProtocol]) -> None:
        self._sock = sock
        self._make = make
        self._loop = asyncio.get_running_loop()
        self._server: asyncio.Server | None = None
        self._connect_tasks: set[asyncio.Task[None]] = set()
        self._is_scheduled = False

    async def start(self) -> None:
        """Take in who comes, from now on."""
        self._sock.settimeout(0)
        self._server = await self._loop.create_server(self._on_connection, sock=self._sock, backlog=BACKLOG)

    def close(self) -> None:
        """Take in no more, and close the socket; connections stay."""
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
                return  # nobody waits; or no descriptor is free, which the server knows how to live with
            task = self._loop.create_task(self._connect(client))
            self._connect_tasks.add(task)
            task.add_done_callback(self._connect_tasks.discard)

    async def _connect(self, client: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._make, client)
        except OSError:
            client.close()  # it has gone already
