"""The listener: serves one listening socket, and owns its connections until the end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any, Final, cast

from aiohttp.web_protocol import RequestHandler
from aiohttp.web_server import Server

from mmsup.gateway.connections import connection_state
from mmsup.gateway.connections.aiohttp_connection import AiohttpConnection
from mmsup.gateway.connections.connection_limit import ConnectionLimit
from mmsup.gateway.connections.context import ConnectionContext
from mmsup.gateway.connections.fast_connection import FastConnection
from mmsup.gateway.http.host_policy import ANY_HOST, HostPolicy

READ_BYTES: Final = 1 << 18


class HttpListener(Server):
    """`is_local`: only this machine can reach the socket. `hosts`: the names that it answers to. Without a `context`
    aiohttp serves all requests."""

    def __init__(  # aiohttp's type of handlers is private
        self,
        handler: Any,
        *,
        is_local: bool,
        hosts: HostPolicy = ANY_HOST,
        context: ConnectionContext | None = None,
    ) -> None:
        super().__init__(handler, handler_cancellation=True)
        self.is_local = is_local
        self.hosts = hosts
        self._context = context
        self.connection_limit: ConnectionLimit[FastConnection] = ConnectionLimit()
        self._changed = asyncio.Event()

    def __call__(self) -> RequestHandler | FastConnection:  # type: ignore[override] # a protocol of either kind
        return self.make_aiohttp_connection(None) if self._context is None else FastConnection(self._context, self)

    def make_aiohttp_connection(self, on_idle: Callable[[], None] | None) -> AiohttpConnection:
        """Alone, or with `on_idle` beside a FastConnection."""
        return AiohttpConnection(
            self,
            on_idle,
            is_local=self.is_local,
            hosts=self.hosts,
            max_connections=self.connection_limit.limit,
            loop=self._loop,
            keepalive_timeout=connection_state.IDLE_S,
            lingering_time=connection_state.LINGER_S,
            read_bufsize=READ_BYTES,
            auto_decompress=False,
            access_log=cast("logging.Logger", None),  # None disables it
        )

    def admit(self, connection: FastConnection, transport: asyncio.BaseTransport) -> bool:
        peer, sock = transport.get_extra_info("peername"), transport.get_extra_info("socket")
        address = str(peer[0]) if isinstance(peer, tuple) and peer else ""
        return self.connection_limit.admit(connection, address, sock.fileno() if sock is not None else 0)

    def remove(self, connection: FastConnection) -> None:
        self.connection_limit.remove(connection)
        self._changed.set()

    @property
    def is_empty(self) -> bool:
        return not self.connection_limit.connections and not self.connections

    def pre_shutdown(self) -> None:
        """Let each connection end with its current request."""
        for connection in list(self.connection_limit.connections):
            connection.close()
        super().pre_shutdown()

    async def shutdown(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - as aiohttp has it
        """End all connections; busy ones after `timeout` at the latest."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while any(each.is_busy for each in self.connection_limit.connections):
                    self._changed.clear()
                    await self._changed.wait()
        await super().shutdown(timeout)
        for connection in list(self.connection_limit.connections):
            connection.abort()
        while self.connection_limit.connections:
            self._changed.clear()
            await self._changed.wait()
