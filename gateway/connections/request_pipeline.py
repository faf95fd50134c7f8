"""The inference requests of one client connection, one at a time: from the bytes of a request to its written response.

Which requests are served here is decided by infer/head_cache.py. A request that would have to wait (for a worker, for
memory, for a parser) is given to aiohttp, as long as no byte of its body was consumed. A head that does not arrive in
one piece is given to aiohttp too, which alone judges and times incomplete heads.

The memory of a response is released when the socket has taken it.
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

from mmsup.gateway.connections import connection_state
from mmsup.gateway.connections.connection_state import ConnectionState
from mmsup.gateway.connections.context import ConnectionContext
from mmsup.gateway.connections.deadline_timer import DeadlineTimer
from mmsup.gateway.connections.message_boundary import BLANK
from mmsup.gateway.http import request_body, response
from mmsup.gateway.http.host_policy import HostPolicy
from mmsup.gateway.http.response_bytes import Parts
from mmsup.gateway.infer.fast_handler import FastInfer
from mmsup.gateway.infer.head_cache import HEAD_LIMIT_BYTES, ParsedHead
from mmsup.ipc.errors import MmsupError

PENDING_LIMIT_BYTES: Final = 1 << 16
"""Bytes buffered behind a request in work, before reading is paused."""
_PROGRESS_BYTES: Final = 1 << 20
"""What a client must read of a response in WRITE_TIMEOUT_S."""

_IDLE, _BODY, _TURN, _WORK, _DRAIN, _SLOW, _LINGER, _CLOSED = ConnectionState


class PipelineConnection(Protocol):
    """The connection, as its pipeline sees it."""

    transport: asyncio.Transport | None
    state: ConnectionState
    timer: DeadlineTimer
    hosts: HostPolicy
    is_closing: bool
    """The connection ends with the request in work."""
    is_write_paused: bool

    def hand_to_aiohttp(self, data: bytes) -> None: ...


class RequestPipeline:
    """One per connection."""

    # fmt: off
    __slots__ = (
        "_body_end_s", "_connection", "_context", "_head", "_is_cut", "_is_read_paused", "_parsed_head",
        "_unsent_bytes", "filled", "infer", "pending", "served",
    )
    # fmt: on

    def __init__(self, context: ConnectionContext, connection: PipelineConnection) -> None:
        self._context = context
        self._connection = connection
        self._head = b""
        self._parsed_head: ParsedHead | None = None
        """The last head that was served here, most likely the next one too."""
        self.infer: FastInfer | None = None
        """The request in work."""
        self.filled = 0
        """How much of `infer.body` has arrived."""
        self.pending = b""
        """Bytes behind the request in work, or of the request that waits in the fair queue."""
        self.served = 0
        """Number of requests answered here and not by aiohttp."""
        self._is_read_paused = False
        self._is_cut = False
        """The rest of a refused body is still to come."""
        self._body_end_s = 0.0
        self._unsent_bytes = 0
        """Bytes of the response in the transport at the last check."""

    # Requests.

    def start(self, data: bytes | bytearray, view: memoryview, size: int, *, was_queued: bool = False) -> None:
        """The first `size` bytes of a request. `was_queued`: the fair queue starts it now."""
        connection, context = self._connection, self._context
        end = len(self._head)
        if size >= end > 0 and data.startswith(self._head):  # the only blank line of a head is at its end
            head = self._parsed_head
        else:
            end = data.find(BLANK, 0, size) + len(BLANK)
            head = self._parse_head(bytes(view[:end])) if end >= len(BLANK) else None
        router = context.inference.router
        if head is None or head.layout.size > router.configuration.max_body_bytes or router.status.retired:
            connection.hand_to_aiohttp(bytes(view[:size]))
            return
        if not was_queued and not context.fair_queue.try_start(head.model, head.cost):
            connection.state, self.pending = _TURN, bytes(view[:size])
            context.fair_queue.enqueue(head.model, head.cost, self._on_turn)
            return
        layout = head.layout
        body = view[end : min(size, end + layout.size)]
        if end + len(body) < size:
            self.pending = bytes(view[end + len(body) : size])
        is_complete = len(body) == layout.size
        if not self._start_infer(head, is_complete=is_complete):
            connection.hand_to_aiohttp(bytes(view[:size]))
        elif connection.state is _BODY and self.infer is not None:
            self.filled = layout.start + len(body)
            self.infer.body[layout.start : self.filled] = body
            if is_complete:
                connection.state = _WORK
                self.infer.start()
            else:
                self._extend_body_deadline()

    def _on_turn(self) -> bool:
        """The fair queue starts the waiting request; False if its client has gone."""
        if self._connection.state is not _TURN:
            return False
        self._connection.state = _IDLE
        self._start_pending(was_queued=True)
        return True

    def _parse_head(self, head: bytes) -> ParsedHead | None:
        parsed = self._context.head_cache.get(head)
        if parsed is not None and not self._connection.hosts.allows(parsed.host):
            return None  # aiohttp's side refuses it
        if parsed is not None and len(head) <= HEAD_LIMIT_BYTES:
            self._head, self._parsed_head = head, parsed
        return parsed

    def _start_infer(self, head: ParsedHead, *, is_complete: bool) -> bool:
        """Open the request, or answer it with an error; False if aiohttp must serve it."""
        context = self._context
        infer = FastInfer(context.inference, context.request_cache, head, self._deliver)
        try:
            opened = infer.open()
        except MmsupError as error:
            if not is_complete:
                infer.close()
                return False  # the rest of the body must be read first; aiohttp does that
            self.infer, self._connection.state = infer, _WORK
            infer.fail(error)
            return True
        if opened:
            self.infer, self._connection.state = infer, _BODY
        return opened

    def on_body_bytes(self, size: int) -> None:
        """The kernel has written `size` more bytes into `infer.body`."""
        infer = self.infer
        assert infer is not None, "a body arrived without a request"
        self.filled += size
        if self.filled == len(infer.body):
            self._connection.state = _WORK
            infer.start()
        else:
            self._extend_body_deadline()

    def _extend_body_deadline(self) -> None:
        now = self._context.loop.time()
        if not self._body_end_s:
            self._body_end_s = now + request_body.TOTAL_S
        self._connection.timer.set(min(request_body.IDLE_S, self._body_end_s - now))

    def buffer(self, data: bytes) -> None:
        """Keep bytes behind the request in work."""
        self.pending += data
        transport = self._connection.transport
        if len(self.pending) >= PENDING_LIMIT_BYTES and transport is not None:
            transport.pause_reading()
            self._is_read_paused = True

    def _start_pending(self, *, was_queued: bool = False) -> None:
        connection = self._connection
        if connection.state is not _IDLE or connection.transport is None:
            return
        data, self.pending = self.pending, b""
        if data:
            self.start(data, memoryview(data), len(data), was_queued=was_queued)
        if self._is_read_paused and len(self.pending) < PENDING_LIMIT_BYTES:
            self._is_read_paused = False
            connection.transport.resume_reading()

    # Responses.

    def _deliver(self, parts: Parts, close: bool) -> None:
        connection = self._connection
        transport = connection.transport
        if transport is None or transport.is_closing():
            return  # connection_lost follows
        if close:
            connection.is_closing = True
        self.served += 1
        if len(parts) == 1:
            transport.write(parts[0])
        else:
            transport.set_write_buffer_limits(high=0)  # resume_writing then means empty, not merely below a limit
            for part in parts:
                transport.write(part)
        if connection.is_write_paused:
            connection.state = _DRAIN
            self._unsent_bytes = transport.get_write_buffer_size()
            connection.timer.set(response.WRITE_TIMEOUT_S)
        else:
            if len(parts) > 1:
                transport.set_write_buffer_limits()
            self.finish_response()

    def finish_response(self) -> None:
        """The socket has taken the response: release its memory, and serve the next request."""
        infer, self.infer = self.infer, None
        if infer is not None:
            infer.close()
        connection = self._connection
        if connection.transport is not None:
            if connection.state is _DRAIN:
                connection.transport.set_write_buffer_limits()
            self.become_idle()

    def become_idle(self) -> None:
        """No request is in work: start the next one if its bytes are here, or close."""
        connection, loop = self._connection, self._context.loop
        connection.state = _IDLE
        self._body_end_s = 0.0
        connection.timer.deadline_s = loop.time() + connection_state.IDLE_S
        if not connection.is_closing and not self.pending and not self._is_read_paused:
            return
        if self._is_cut and connection.transport is not None:
            connection.state = _LINGER
            connection.transport.write_eof()
            connection.timer.set(connection_state.LINGER_S)
        elif connection.is_closing and connection.transport is not None:
            connection.state = _CLOSED
            connection.transport.close()
        elif self.pending or self._is_read_paused:
            loop.call_soon(self._start_pending)

    def cancel(self) -> None:
        self.pending = b""
        if self.infer is not None:
            self.infer.cancel()
            self.infer = None

    # Time.

    def on_deadline(self) -> None:
        """The deadline of the connection has passed: what that means depends on its state."""
        connection = self._connection
        transport, state = connection.transport, connection.state
        if transport is None:
            return
        if state is _WORK or state is _SLOW or state is _TURN:  # limited by the request's deadline, or by aiohttp
            connection.timer.set(connection_state.IDLE_S)
        elif state is _BODY and self.infer is not None:
            connection.state = _WORK
            self._is_cut = True
            self.infer.fail(request_body.timeout_error())
        elif state is _DRAIN:
            unsent_bytes = transport.get_write_buffer_size()
            if self._unsent_bytes - unsent_bytes < _PROGRESS_BYTES:
                transport.abort()
            else:
                self._unsent_bytes = unsent_bytes
                connection.timer.set(response.WRITE_TIMEOUT_S)
        else:
            transport.close()
