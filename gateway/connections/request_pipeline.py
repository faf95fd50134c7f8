"""The inference requests of one client connection, one at a time: from the bytes of a request to its written response.

Which requests are served here is decided by infer/head_cache.py. A known request (infer/known_request.py) is found by
its bytes, sent from the read buffer and answered at its reply; for all others there is a FastInfer. A request that
would have to wait (for a worker, for memory, for a parser) is given to aiohttp, as long as no byte of its body was
consumed. A head that does not arrive in one piece is given to aiohttp too, which alone judges and times incomplete
heads.

The memory of a response is released when the socket has taken it.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Final, Protocol

from mmsup.gateway.connections import connection_state
from mmsup.gateway.connections.connection_state import ConnectionState
from mmsup.gateway.connections.context import ConnectionContext
from mmsup.gateway.connections.deadline_timer import DeadlineTimer
from mmsup.gateway.connections.recognition import RequestRecognition
from mmsup.gateway.http import request_body, response
from mmsup.gateway.http.host_policy import HostPolicy
from mmsup.gateway.http.response_bytes import Parts
from mmsup.gateway.infer import known_in_flight
from mmsup.gateway.infer.fast_handler import FastInfer
from mmsup.gateway.infer.known_in_flight import PackedInFlight
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
    is_local: bool
    """Only this machine can reach its listener."""
    is_closing: bool
    """The connection ends with the request in work."""
    is_write_paused: bool

    def hand_to_aiohttp(self, data: bytes) -> None: ...


class PartialBody:
    """The body of the request in work, which is written to where the model reads it."""

    __slots__ = ("_end_s", "_filled", "_loop", "_start", "infer", "started_ns")

    def __init__(self, infer: FastInfer, start: int, loop: asyncio.AbstractEventLoop) -> None:
        self.infer = infer
        self._start = self._filled = start
        self._loop = loop
        self.started_ns = time.monotonic_ns()
        self._end_s = 0.0

    def buffer(self) -> memoryview:
        """Where the next bytes of the body belong."""
        return self.infer.body[self._filled :]

    def add(self, size: int) -> bool:
        """So many were written; True if the body is complete."""
        self._filled += size
        return self._filled == len(self.infer.body)

    def bytes_in_parts(self) -> bytes:
        """The body, if it arrived in parts and may be that of a known request; else nothing."""
        head = self.infer.head
        return bytes(self.infer.body[self._start :]) if self._end_s and head.may_be_known else b""

    def time_left_s(self) -> float:
        """For the next bytes."""
        now = self._loop.time()
        self._end_s = self._end_s or now + request_body.TOTAL_S
        return min(request_body.IDLE_S, self._end_s - now)


class RequestPipeline:
    """One per connection."""

    # fmt: off
    __slots__ = (
        "_connection", "_context", "_is_cut", "_is_read_paused", "_recognition", "_unsent_bytes", "answered",
        "body", "infer", "pending", "served",
    )
    # fmt: on

    def __init__(self, context: ConnectionContext, connection: PipelineConnection) -> None:
        self._context = context
        self._connection = connection
        self._recognition = RequestRecognition(context, connection.hosts)
        self.infer: FastInfer | PackedInFlight | None = None
        """The request in work."""
        self.answered: PackedInFlight | None = None
        """The last known request, whose entry the next one takes over."""
        self.body: PartialBody | None = None
        """Its body, while that arrives."""
        self.pending = b""
        """Bytes behind the request in work, or of the request that waits in the fair queue."""
        self.served = 0
        """Number of requests answered here and not by aiohttp."""
        self._is_read_paused = False
        self._is_cut = False
        """The rest of a refused body is still to come."""
        self._unsent_bytes = 0
        """Bytes of the response in the transport at the last check."""

    # Requests.

    def start(self, data: bytes | bytearray, view: memoryview, size: int, *, was_queued: bool = False) -> None:
        """The first `size` bytes of a request. `was_queued`: the fair queue starts it now."""
        recognition, queue = self._recognition, self._context.fair_queue
        found = recognition.last
        if (  # what `find` looks at first
            found is None
            or size < found.end
            or not data.startswith(recognition.last_text)
            or not found.known.route.is_plain
        ):
            found = recognition.find(data, view, size)
        if found is None:
            self._start_unknown(data, view, size, was_queued=was_queued)
            return
        if not was_queued:
            model = found.known.model
            started = queue.started.get(model)
            if started is not None and started + found.cost <= queue.limit:  # what `try_start` looks at first
                queue.started[model] = started + found.cost
            elif not queue.try_start(model, found.cost):
                self._connection.state, self.pending = _TURN, bytes(view[:size])
                queue.enqueue(model, found.cost, partial(self._start_pending, was_queued=True))
                return
        request = known_in_flight.send(found, view, self)
        if request is None:  # not admitted, or with numbers that do not fit
            self._start_unknown(data, view, size, was_queued=True)
            return
        self.infer, self._connection.state = request, _WORK
        if size > found.end:
            self.pending = bytes(view[found.end : size])

    def _start_unknown(self, data: bytes | bytearray, view: memoryview, size: int, *, was_queued: bool) -> None:
        connection, context = self._connection, self._context
        found = self._recognition.read_head(data, view, size)
        router = context.inference.router
        if found is None or found[0].layout.size > router.configuration.max_body_bytes or router.status.retired:
            connection.hand_to_aiohttp(bytes(view[:size]))
            return
        head, end, echo_id = found
        if not was_queued and not context.fair_queue.try_start(head.model, head.cost):
            connection.state, self.pending = _TURN, bytes(view[:size])
            context.fair_queue.enqueue(head.model, head.cost, partial(self._start_pending, was_queued=True))
            return
        layout = head.layout
        body = view[end : min(size, end + layout.size)]
        if end + len(body) < size:
            self.pending = bytes(view[end + len(body) : size])
        is_complete = len(body) == layout.size
        made = context.make_infer(head, echo_id, self.deliver, is_local=connection.is_local)
        infer = self._open_infer(made, is_complete=is_complete)
        if infer is None:
            connection.hand_to_aiohttp(bytes(view[:size]))
        elif connection.state is _BODY:
            self.body = PartialBody(infer, layout.start, context.loop)
            self.body.buffer()[: len(body)] = body
            self.on_body_bytes(len(body))

    def _open_infer(self, infer: FastInfer, *, is_complete: bool) -> FastInfer | None:
        """Open the request, or answer it with an error; None if aiohttp must serve it."""
        try:
            opened = infer.open()
        except MmsupError as error:
            if not is_complete:
                infer.close()
                return None  # the rest of the body must be read first; aiohttp does that
            self.infer, self._connection.state = infer, _WORK
            infer.fail(error)
            return infer
        if not opened:
            return None
        self.infer, self._connection.state = infer, _BODY
        return infer

    def on_body_bytes(self, size: int) -> None:
        """`size` more bytes were written into `body`."""
        body = self.body
        assert body is not None, "a body arrived without a request that waits for it"
        if not body.add(size):
            self._connection.timer.set(body.time_left_s())
            return
        self.body, self._connection.state = None, _WORK
        infer, data = body.infer, body.bytes_in_parts()
        found = self._recognition.look_up(infer.head, infer.echo_id, data, 0) if data else None
        request = known_in_flight.send(found, memoryview(data), self, body.started_ns) if found is not None else None
        if request is None:
            infer.start()
        else:
            self.infer = request
            infer.close()

    def buffer(self, data: bytes) -> None:
        """Keep bytes behind the request in work."""
        self.pending += data
        transport = self._connection.transport
        if len(self.pending) >= PENDING_LIMIT_BYTES and transport is not None:
            transport.pause_reading()
            self._is_read_paused = True

    def _start_pending(self, *, was_queued: bool = False) -> bool:
        """Start the request that arrived before, or that the fair queue starts now; False if its client has gone."""
        connection = self._connection
        if connection.state is not (_TURN if was_queued else _IDLE) or connection.transport is None:
            return False
        connection.state = _IDLE
        data, self.pending = self.pending, b""
        if data:
            self.start(data, memoryview(data), len(data), was_queued=was_queued)
        if self._is_read_paused and len(self.pending) < PENDING_LIMIT_BYTES:
            self._is_read_paused = False
            connection.transport.resume_reading()
        return True

    # Responses.

    def deliver(self, parts: Parts, close: bool) -> None:
        """Write the response to the request in work; `close`: the connection ends with it."""
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
            self._drain(transport)
        else:
            if len(parts) > 1:
                transport.set_write_buffer_limits()
            self.finish_response()

    def _drain(self, transport: asyncio.Transport) -> None:
        self._connection.state = _DRAIN
        self._unsent_bytes = transport.get_write_buffer_size()
        self._connection.timer.set(response.WRITE_TIMEOUT_S)

    def deliver_known(self, data: bytes, request: PackedInFlight) -> bool:
        """The same for this known request, which is done with if True; else it is closed when the socket has taken the
        response."""
        connection = self._connection
        transport = connection.transport
        if transport is None or transport.is_closing():
            return False  # connection_lost follows
        self.served += 1
        transport.write(data)
        if connection.is_write_paused:
            self._drain(transport)
            return False
        self.infer, self.answered = None, request
        if self.pending or self._is_read_paused or connection.is_closing:
            self.become_idle()
        else:  # the same where nothing else is to be done
            connection.state = _IDLE
            connection.timer.deadline_s = self._context.loop.time() + connection_state.IDLE_S
        return True

    def materialise(self, request: PackedInFlight) -> None:
        """Serve a known request in flight as any other from now on."""
        self.infer = infer = self._context.make_infer(
            request.known.head, request.found.echo_id, self.deliver, is_local=self._connection.is_local
        )
        infer.adopt(request)

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
        self.pending, self.body = b"", None
        self.answered = None  # it refers to this
        infer, self.infer = self.infer, None
        if isinstance(infer, PackedInFlight):
            if infer.is_answered:
                infer.close()
                return
            self.materialise(infer)
            infer, self.infer = self.infer, None
        if infer is not None:
            infer.cancel()

    # Time.

    def on_deadline(self) -> None:
        """The deadline of the connection has passed: what that means depends on its state."""
        connection = self._connection
        transport, state = connection.transport, connection.state
        if transport is None:
            return
        if state is _WORK or state is _SLOW or state is _TURN:  # limited by the request's deadline, or by aiohttp
            connection.timer.set(connection_state.IDLE_S)
        elif state is _BODY and self.body is not None:
            connection.state = _WORK
            self._is_cut = True
            self.body.infer.fail(request_body.timeout_error())
            self.body = None
        elif state is _DRAIN:
            unsent_bytes = transport.get_write_buffer_size()
            if self._unsent_bytes - unsent_bytes < _PROGRESS_BYTES:
                transport.abort()
            else:
                self._unsent_bytes = unsent_bytes
                connection.timer.set(response.WRITE_TIMEOUT_S)
        else:
            transport.close()
