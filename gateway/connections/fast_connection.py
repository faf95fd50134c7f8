"""One client connection without aiohttp: inference requests by a RequestPipeline, all others by an aiohttp handler
beside it, which is made when it is first needed.

At most one request of a connection is in work at a time, whichever of the two serves it. connection_state.py has the
states.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol, cast

from aiohttp.tcp_helpers import tcp_keepalive

from mmsup.gateway.connections import connection_state
from mmsup.gateway.connections.aiohttp_connection import TOO_MANY_CONNECTIONS, AiohttpConnection
from mmsup.gateway.connections.connection_state import ConnectionState
from mmsup.gateway.connections.context import ConnectionContext
from mmsup.gateway.connections.deadline_timer import DeadlineTimer
from mmsup.gateway.connections.message_boundary import BLANK
from mmsup.gateway.connections.request_pipeline import RequestPipeline
from mmsup.gateway.http import response_bytes
from mmsup.gateway.http.host_policy import HostPolicy

_IDLE, _BODY, _TURN, _WORK, _DRAIN, _SLOW, _LINGER, _CLOSED = ConnectionState


class ConnectionOwner(Protocol):
    """The listener, as its connections see it."""

    hosts: HostPolicy
    is_local: bool

    def admit(self, connection: FastConnection, transport: asyncio.BaseTransport) -> bool: ...
    def remove(self, connection: FastConnection) -> None: ...
    def make_aiohttp_connection(self, on_idle: Callable[[], None] | None) -> AiohttpConnection: ...


class FastConnection(asyncio.BufferedProtocol):
    """Made by an HttpListener for each client."""

    # fmt: off
    __slots__ = (
        "_aiohttp", "_context", "_listener", "hosts", "is_closing", "is_local", "is_write_paused", "requests", "state",
        "timer", "transport",
    )
    # fmt: on

    def __init__(self, context: ConnectionContext, listener: ConnectionOwner) -> None:
        self._context = context
        self._listener = listener
        self.hosts = listener.hosts
        self.is_local = listener.is_local
        self._aiohttp: AiohttpConnection | None = None
        self.transport: asyncio.Transport | None = None
        self.state = _IDLE
        self.is_closing = self.is_write_paused = False
        self.requests = RequestPipeline(context, self)
        self.timer = DeadlineTimer(context.loop, self.requests.on_deadline)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        tcp_keepalive(self.transport)
        self.timer.set(connection_state.IDLE_S)
        if not self._listener.admit(self, self.transport):
            self.state = _CLOSED
            self.transport.write(response_bytes.error_bytes(TOO_MANY_CONNECTIONS, "", {}))
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._listener.remove(self)
        self.state = _CLOSED
        self.timer.cancel()
        self.requests.cancel()
        if self._aiohttp is not None:
            self._aiohttp.connection_lost(exc)
            self._aiohttp = None
        self.transport = None
        del self.requests  # it refers to the connection: the garbage collector is not needed without this cycle

    def pause_writing(self) -> None:
        self.is_write_paused = True
        if self._aiohttp is not None:
            self._aiohttp.pause_writing()

    def resume_writing(self) -> None:
        self.is_write_paused = False
        if self._aiohttp is not None:
            self._aiohttp.resume_writing()
        if self.state is _DRAIN:
            self.requests.finish_response()

    def close(self) -> None:
        """Close after the request in work, if there is one."""
        self.is_closing = True
        if self._aiohttp is not None:
            self._aiohttp.close()
        if self.state is _IDLE and self.transport is not None:
            self.transport.close()

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    @property
    def is_busy(self) -> bool:
        """Whether a request is in work in the pipeline."""
        return self.requests.infer is not None or self.state is _TURN

    @property
    def uses(self) -> int:
        """Number of requests so far, answered by either."""
        return self.requests.served + (self._aiohttp.requests if self._aiohttp is not None else 0)

    @property
    def is_evictable(self) -> bool:
        """Whether no request is lost with it: it is between two, or in the head of one."""
        if self.state is _IDLE:
            return not self.requests.pending
        return self.state is _SLOW and self._aiohttp is not None and self._aiohttp.is_idle()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - a hint
        body = self.requests.body
        if body is not None:
            return body.buffer()
        return self._context.read_view

    def buffer_updated(self, nbytes: int) -> None:
        state = self.state
        if state is _IDLE and not self.requests.pending:
            self.requests.start(self._context.read_buffer, self._context.read_view, nbytes)
        elif state is _BODY:
            self.requests.on_body_bytes(nbytes)
        else:
            self._on_other_bytes(bytes(self._context.read_view[:nbytes]))

    def _on_other_bytes(self, data: bytes) -> None:
        """Bytes behind a request in work, or for aiohttp."""
        aiohttp = self._aiohttp
        if self.state is _SLOW and aiohttp is not None and not aiohttp.is_between_requests():
            aiohttp.data_received(data)
        elif self.state is not _CLOSED and self.state is not _LINGER:
            self.requests.buffer(data)
            if self.state is _SLOW:
                self.on_aiohttp_idle()

    def hand_to_aiohttp(self, data: bytes) -> None:
        """Let aiohttp serve the request that starts with `data`."""
        self.state = _SLOW
        self.requests.pending = b""
        if self._aiohttp is None:
            assert self.transport is not None, "a lost connection has no request"
            self._aiohttp = self._listener.make_aiohttp_connection(self.on_aiohttp_idle)
            self._aiohttp.connection_made(self.transport)
        end = data.find(BLANK) + len(BLANK)
        if end < len(BLANK) or end == len(data):
            self._aiohttp.data_received(data)
            return
        self._aiohttp.data_received(data[:end])
        self._on_other_bytes(data[end:])  # aiohttp's only if the head announces a body

    def on_aiohttp_idle(self) -> None:
        """The aiohttp handler waits for a request: unless it holds a part of one, the next bytes are the pipeline's."""
        aiohttp = self._aiohttp
        if self.state is _SLOW and aiohttp is not None and aiohttp.is_idle() and aiohttp.is_between_requests():
            aiohttp.suspend()
            self.requests.become_idle()
