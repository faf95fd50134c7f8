"""Connections of clients, accepted on the keeper's listener and passed on byte by byte to grpcio's own socket.

grpcio cannot take over a listening socket. So that clients wait in the keeper's while this process is started again,
it accepts for the library.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Final, cast

CONNECTION_LIMIT: Final = 2048
"""Open ones; each takes two descriptors. Clients beyond it are closed."""
BACKLOG: Final = 4096
WRITE_HIGH_BYTES: Final = 1 << 20


class SplicedEnd(asyncio.Protocol):
    """One end of a connection; what comes in goes out at the other end."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.other: SplicedEnd | None = None
        self._early: list[bytes] = []
        """What came before there was another end."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(WRITE_HIGH_BYTES)

    def join(self, other: SplicedEnd) -> None:
        self.other, other.other = other, self
        for end in (self, other):
            early, end._early = end._early, []
            for each in early:
                end.data_received(each)

    def data_received(self, data: bytes) -> None:
        if self.other is None:
            self._early.append(data)
        elif self.other.transport is not None:
            self.other.transport.write(data)

    def pause_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self.transport = None
        other, self.other = self.other, None
        if other is not None and other.transport is not None:
            other.transport.close()


class ClientEnd(SplicedEnd):
    """The end that a client has connected; it is read from once the other one is there."""

    def __init__(self, splice: Splice) -> None:
        super().__init__()
        self._splice = splice

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert self.transport is not None, "a connection without a transport"
        self.transport.pause_reading()
        self._splice.start(self)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._splice.clients.discard(self)


class Splice:
    """From one listening socket to the socket at `path`."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.clients: set[ClientEnd] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def listen(self, sock: socket.socket) -> None:
        sock.settimeout(0)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: ClientEnd(self), sock=sock, backlog=BACKLOG)

    def close(self) -> None:
        """Accept no more; connections stay."""
        if self._server is not None:
            self._server.close()

    def start(self, client: ClientEnd) -> None:
        assert client.transport is not None, "a client without a transport"
        if len(self.clients) >= CONNECTION_LIMIT:
            client.transport.abort()
            return
        self.clients.add(client)
        task = asyncio.get_running_loop().create_task(self._connect(client))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, client: ClientEnd) -> None:
        try:
            _, other = await asyncio.get_running_loop().create_unix_connection(SplicedEnd, self._path)
        except OSError:
            if client.transport is not None:
                client.transport.abort()
            return
        if client.transport is None:
            if other.transport is not None:
                other.transport.close()
            return
        client.join(other)
        client.transport.resume_reading()
