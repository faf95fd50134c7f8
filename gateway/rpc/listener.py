"""Serves gRPC on one listening socket, and owns its connections until the end."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial

from mmsup.gateway.connections.connection_limit import ConnectionLimit
from mmsup.gateway.http.request import socket_peer_uid
from mmsup.gateway.http2.connection import Http2Connection
from mmsup.gateway.rpc.calls.peer import RpcPeer
from mmsup.gateway.rpc.server import RpcServer
from mmsup.ipc.rpc.keepalive import DEFAULT_KEEPALIVE, RpcKeepalive


class RpcConnection(Http2Connection):
    """A connection that knows its client. `peer` is complete when the connection is admitted."""

    def __init__(self, owner: RpcListener, server: RpcServer, keepalive: RpcKeepalive, peer: RpcPeer) -> None:
        super().__init__(owner, partial(server.open_stream, peer=peer), keepalive)
        self.peer = peer


class RpcListener:
    """`is_local`: only this machine can reach the socket."""

    def __init__(self, server: RpcServer, keepalive: RpcKeepalive = DEFAULT_KEEPALIVE, *, is_local: bool) -> None:
        self._server = server
        self._keepalive = keepalive
        self._is_local = is_local
        self._connections: ConnectionLimit[Http2Connection] = ConnectionLimit()
        self._changed = asyncio.Event()

    def __call__(self) -> Http2Connection:
        return RpcConnection(self, self._server, self._keepalive, RpcPeer(self._is_local))

    def admit(self, connection: Http2Connection, transport: asyncio.BaseTransport) -> bool:
        peer, sock = transport.get_extra_info("peername"), transport.get_extra_info("socket")
        if isinstance(connection, RpcConnection):
            connection.peer.uid = socket_peer_uid(sock)
        address = str(peer[0]) if isinstance(peer, tuple) and peer else ""
        return self._connections.admit(connection, address, sock.fileno() if sock is not None else 0)

    def remove(self, connection: Http2Connection) -> None:
        self._connections.remove(connection)
        self._changed.set()

    @property
    def is_empty(self) -> bool:
        return not self._connections.connections

    def retire(self) -> None:
        """Let each connection end with the calls that are open now; clients make new ones on other connections."""
        for connection in list(self._connections.connections):
            connection.retire()

    def end_idle_streams(self) -> None:
        """The same, and streams of calls end once nothing goes on in them."""
        for connection in list(self._connections.connections):
            connection.retire()
            connection.end_idle_streams()

    pre_shutdown = end_idle_streams

    def on_tick(self, now_s: float) -> None:
        for connection in list(self._connections.connections):
            connection.on_tick(now_s)

    async def shutdown(self, timeout: float) -> None:  # noqa: ASYNC109 - as the other listeners have it
        """End all connections; busy ones after `timeout` at the latest."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._wait_until_empty()
        for connection in list(self._connections.connections):
            connection.abort()
        await self._wait_until_empty()

    async def _wait_until_empty(self) -> None:
        while not self.is_empty:
            self._changed.clear()
            await self._changed.wait()
