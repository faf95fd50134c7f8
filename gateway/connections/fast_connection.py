"""The front: one client's connection, with inferences served straight from it and all else by aiohttp beside it.

Its states are in `states.py`. Which requests are ours is for `plans.py` to say; a request that would have to wait (for
a worker, for memory, for a parser) is aiohttp's as well, as long as no byte of its body was taken. A head that does not
come in one piece is aiohttp's too: so it alone judges what is cut, and times it.

At most one request of a connection is in work, by either way. The memory of a reply is free when the socket has taken
it. The timers here are our own; none is made for a request that comes and goes at once.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, cast

from aiohttp.tcp_helpers import tcp_keepalive

from mmsup.gateway.connections.connection_state import ConnectionState
from mmsup.gateway.connections.context import ConnectionContext
from mmsup.gateway.connections.message_boundary import BLANK
from mmsup.gateway.http import request_body, response, response_bytes
from mmsup.gateway.http.response_bytes import Parts
from mmsup.gateway.infer.fast_handler import FastInfer
from mmsup.gateway.infer.head_cache import HEAD_LIMIT_BYTES, ParsedHead
from mmsup.ipc.errors import MmsupError, ServerError

if TYPE_CHECKING:
    from mmsup.gateway.connections.aiohttp_connection import AiohttpConnection, HttpListener

IDLE_S: Final = 75.0
"""Between requests."""
LINGER_S: Final = 5.0
"""How long the rest of a refused body is read, so that the client reads our answer and not a reset."""
REST_LIMIT_BYTES: Final = 1 << 16
"""Of what follows a request that is in work."""
TOO_MANY_CONNECTIONS: Final = ServerError("unavailable", "too many connections", retry_after_s=1)
_PIECE_BYTES: Final = 1 << 20
"""What a client must take of a reply in SLOWEST_S."""

_IDLE, _BODY, _TURN, _WORK, _DRAIN, _SLOW, _LINGER, _CLOSED = ConnectionState


class FastConnection(asyncio.BufferedProtocol):
    """Made by `Listener` for each client."""

    __slots__ = (
        "_aiohttp",
        "_at",
        "_context",
        "_due_s",
        "_end_s",
        "_fires_s",
        "_head",
        "_infer",
        "_is_closing",
        "_is_cut",
        "_is_read_paused",
        "_is_write_paused",
        "_left",
        "_listener",
        "_parsed_head",
        "_rest",
        "_state",
        "_timer",
        "_transport",
        "served",
    )

    def __init__(self, shared: ConnectionContext, listener: HttpListener) -> None:
        self._context = shared
        self._listener = listener
        self._transport: asyncio.Transport | None = None
        self._aiohttp: AiohttpConnection | None = None
        self._infer: FastInfer | None = None
        self._state = _IDLE
        self._rest = self._head = b""
        self._parsed_head: ParsedHead | None = None
        """Of the last head that was ours."""
        self._at = 0
        """How much of the errand's space is filled."""
        self._is_write_paused = self._is_read_paused = self._is_closing = self._is_cut = False
        """`_is_cut`: the rest of a body is still on its way, and nobody wants it any more."""
        self._left = 0
        """Bytes of a reply that were still to be taken at the last look."""
        self._timer: asyncio.Handle | None = None
        self._due_s = self._end_s = self._fires_s = 0.0
        self.served = 0
        """Requests answered here and not by aiohttp."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client came."""
        self._transport = cast("asyncio.Transport", transport)
        tcp_keepalive(self._transport)
        self._watch(IDLE_S)
        if not self._listener.admit(self, self._transport):
            self._state = _CLOSED
            self._transport.write(response_bytes.error_bytes(TOO_MANY_CONNECTIONS, "", {}))
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """It went, or we closed."""
        self._listener.remove(self)
        self._state = _CLOSED
        self._rest = b""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._infer is not None:
            self._infer.cancel()
            self._infer = None
        if self._aiohttp is not None:
            self._aiohttp.connection_lost(exc)
            self._aiohttp = None
        self._transport = None

    def eof_received(self) -> None:
        """Half a connection is none: the transport closes itself, as under aiohttp."""

    def pause_writing(self) -> None:
        """The transport holds more than it should."""
        self._is_write_paused = True
        if self._aiohttp is not None:
            self._aiohttp.pause_writing()

    def resume_writing(self) -> None:
        """The transport holds little again, or nothing."""
        self._is_write_paused = False
        if self._aiohttp is not None:
            self._aiohttp.resume_writing()
        if self._state is _DRAIN:
            self._replied()

    def close(self) -> None:
        """End it after the request that is in work, if one is."""
        self._is_closing = True
        if self._aiohttp is not None:
            self._aiohttp.close()
        if self._state is _IDLE and self._transport is not None:
            self._transport.close()

    @property
    def is_busy(self) -> bool:
        """Whether a request of its own is in work."""
        return self._infer is not None or self._state is _TURN

    @property
    def uses(self) -> int:
        """Requests so far, answered by either."""
        return self.served + (self._aiohttp.requests if self._aiohttp is not None else 0)

    @property
    def is_evictable(self) -> bool:
        """Whether no request is lost with it: it is between two, or in the head of one."""
        slow = self._aiohttp
        return (self._state is _IDLE and not self._rest) or (
            self._state is _SLOW and slow is not None and slow.is_idle()
        )

    def abort(self) -> None:
        """End it now."""
        if self._transport is not None:
            self._transport.abort()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - a hint
        """Where the kernel shall write what has come."""
        if self._state is _BODY and self._infer is not None:
            return self._infer.body[self._at :]
        return self._context.read_view

    def buffer_updated(self, nbytes: int) -> None:
        """It has written that much."""
        state = self._state
        if state is _IDLE and not self._rest:
            self._start_request(self._context.read_buffer, self._context.read_view, nbytes)
        elif state is _BODY:
            self._at += nbytes
            self._fill()
        else:
            self._buffer_bytes(bytes(self._context.read_view[:nbytes]))

    def _buffer_bytes(self, data: bytes) -> None:
        """Bytes that follow a request which is in work, or that are aiohttp's."""
        slow = self._aiohttp
        if self._state is _SLOW and slow is not None and not slow.is_between_requests():
            slow.data_received(data)
        elif self._state is not _CLOSED and self._state is not _LINGER:
            self._rest += data
            if len(self._rest) >= REST_LIMIT_BYTES and self._transport is not None:
                self._transport.pause_reading()
                self._is_read_paused = True
            if self._state is _SLOW:
                self.on_aiohttp_idle()

    def _start_request(self, data: bytes | bytearray, view: memoryview, size: int, *, its_turn: bool = False) -> None:
        """The first bytes of a request; `its_turn`: it has waited for that."""
        end = len(self._head)
        if size >= end > 0 and data.startswith(self._head):  # its only blank line is its end
            plan = self._parsed_head
        else:
            end = data.find(BLANK, 0, size) + len(BLANK)
            plan = self._read_head(bytes(view[:end])) if end >= len(BLANK) else None
        backend = self._context.inference.router
        if plan is None or plan.layout.size > backend.max_body_bytes or backend.retired:
            self._hand_to_aiohttp(bytes(view[:size]))
            return
        if not its_turn and not self._context.fair_queue.try_start(plan.model, plan.cost):
            self._state, self._rest = _TURN, bytes(view[:size])
            self._context.fair_queue.enqueue(plan.model, plan.cost, self._on_turn)
            return
        body = view[end : min(size, end + plan.layout.size)]
        if end + len(body) < size:
            self._rest = bytes(view[end + len(body) : size])
        if not self._start_infer(plan, whole=len(body) == plan.layout.size):
            self._hand_to_aiohttp(bytes(view[:size]))
        elif self._state is _BODY and self._infer is not None:
            self._at = plan.layout.start + len(body)
            self._infer.body[plan.layout.start : self._at] = body
            self._fill()

    def _on_turn(self) -> bool:
        """Go on with the request that waited; False if its client has gone."""
        if self._state is not _TURN:
            return False
        self._state = _IDLE
        self._next(its_turn=True)
        return True

    def _read_head(self, head: bytes) -> ParsedHead | None:
        """The plan of a head; the last one of a connection is most likely its next one too."""
        plan = self._context.head_cache.get(head)
        if plan is not None and len(head) <= HEAD_LIMIT_BYTES:
            self._head, self._parsed_head = head, plan
        return plan

    def _start_infer(self, plan: ParsedHead, *, whole: bool) -> bool:
        """Start an errand, or refuse it; False if aiohttp shall have the request. `whole`: its body is there."""
        core = self._context.inference
        errand = FastInfer(core, self._context.request_cache, plan, self._deliver)
        try:
            opened = errand.open()
        except MmsupError as error:
            if not whole:
                errand.close()
                return False  # what is left of the body must be read first; aiohttp does that
            self._infer, self._state = errand, _WORK
            errand.fail(error)
            return True
        if opened:
            self._infer, self._state = errand, _BODY
        return opened

    def _fill(self) -> None:
        """Some of the body has come."""
        errand = self._infer
        assert errand is not None, "a body is filled for nobody"
        if self._at == len(errand.body):
            self._state = _WORK
            errand.start()
            return
        now = self._context.loop.time()
        if not self._end_s:
            self._end_s = now + request_body.TOTAL_S
        self._watch(min(request_body.IDLE_S, self._end_s - now))

    # Replies.

    def _deliver(self, parts: Parts, close: bool) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return  # `connection_lost` is about to say so
        if close:
            self._is_closing = True
        self.served += 1
        if len(parts) == 1:
            transport.write(parts[0])
        else:
            transport.set_write_buffer_limits(high=0)  # it says then when it holds nothing, not when it holds little
            for part in parts:
                transport.write(part)
        if self._is_write_paused:
            self._state = _DRAIN
            self._left = transport.get_write_buffer_size()
            self._watch(response.WRITE_TIMEOUT_S)
        else:
            if len(parts) > 1:
                transport.set_write_buffer_limits()
            self._replied()

    def _replied(self) -> None:
        """The reply is on its way and none of its memory is needed: the next request may come."""
        errand, self._infer = self._infer, None
        if errand is not None:
            errand.close()
        if self._transport is not None:
            if self._state is _DRAIN:
                self._transport.set_write_buffer_limits()
            self._rest_or_close()

    def _rest_or_close(self) -> None:
        self._state = _IDLE
        self._end_s = 0.0
        self._due_s = self._context.loop.time() + IDLE_S
        if not self._is_closing and not self._rest and not self._is_read_paused:
            return
        if self._is_cut and self._transport is not None:
            self._state = _LINGER
            self._transport.write_eof()
            self._watch(LINGER_S)
        elif self._is_closing and self._transport is not None:
            self._state = _CLOSED
            self._transport.close()
        elif self._rest or self._is_read_paused:
            self._context.loop.call_soon(self._next)

    def _next(self, *, its_turn: bool = False) -> None:
        """What had come while another request was in work, or while this one waited for its turn."""
        if self._state is not _IDLE or self._transport is None:
            return
        data, self._rest = self._rest, b""
        if data:
            self._start_request(data, memoryview(data), len(data), its_turn=its_turn)
        if self._is_read_paused and len(self._rest) < REST_LIMIT_BYTES:
            self._is_read_paused = False
            self._transport.resume_reading()

    # aiohttp's handler beside us.

    def _beside(self) -> AiohttpConnection:
        if self._aiohttp is None:
            assert self._transport is not None, "nothing is handed over on a connection that is gone"
            self._aiohttp = self._listener.make_aiohttp_connection(self)
            self._aiohttp.connection_made(self._transport)
        return self._aiohttp

    def _hand_to_aiohttp(self, data: bytes) -> None:
        """Give it a request; what follows a head without a body is not yet its."""
        self._state = _SLOW
        self._rest = b""
        slow = self._beside()
        end = data.find(BLANK) + len(BLANK)
        if end < len(BLANK) or end == len(data):
            slow.data_received(data)
            return
        slow.data_received(data[:end])
        self._buffer_bytes(data[end:])

    def on_aiohttp_idle(self) -> None:
        """The handler waits for a next request: if it holds nothing of one, the next bytes are ours again."""
        slow = self._aiohttp
        if self._state is _SLOW and slow is not None and slow.is_idle() and slow.is_between_requests():
            slow.suspend()
            self._rest_or_close()

    # Time.

    def _watch(self, after_s: float) -> None:
        """Something must have happened by then. A timer that fires too early costs less than one for each request."""
        loop = self._context.loop
        self._due_s = loop.time() + after_s
        if self._timer is not None:
            if self._fires_s <= self._due_s:
                return
            self._timer.cancel()
        self._look_at(self._due_s)

    def _look_at(self, when_s: float) -> None:
        self._fires_s = when_s  # a timer that is due at once is none that uvloop could ask for its time
        self._timer = self._context.loop.call_at(when_s, self._look)

    def _look(self) -> None:
        self._timer = None
        transport, loop, state = self._transport, self._context.loop, self._state
        if transport is None:
            return
        if state is _WORK or state is _SLOW or state is _TURN:  # the deadline's, and aiohttp's own timers' business
            self._look_at(loop.time() + IDLE_S)
        elif loop.time() < self._due_s:
            self._look_at(self._due_s)
        elif state is _BODY and self._infer is not None:
            self._state = _WORK
            self._is_cut = True
            self._infer.on_body_timeout(request_body.timeout_error())
        elif state is _DRAIN:
            self._look_at_reader(transport)
        else:
            transport.close()

    def _look_at_reader(self, transport: asyncio.Transport) -> None:
        left = transport.get_write_buffer_size()
        if self._left - left < _PIECE_BYTES:
            transport.abort()
        else:
            self._left = left
            self._watch(response.WRITE_TIMEOUT_S)
