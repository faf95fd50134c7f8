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

from mmsup.gateway.connections.connection_state import State
from mmsup.gateway.connections.context import Shared
from mmsup.gateway.connections.message_boundary import BLANK
from mmsup.gateway.http import request_body, response, response_bytes
from mmsup.gateway.http.response_bytes import Parts
from mmsup.gateway.infer.fast_handler import Errand
from mmsup.gateway.infer.head_cache import KEY_BYTES_LIMIT, Plan
from mmsup.ipc.errors import MmsupError, ServerError

if TYPE_CHECKING:
    from mmsup.gateway.connections.aiohttp_connection import Connection, Listener

IDLE_S: Final = 75.0
"""Between requests."""
LINGER_S: Final = 5.0
"""How long the rest of a refused body is read, so that the client reads our answer and not a reset."""
REST_LIMIT_BYTES: Final = 1 << 16
"""Of what follows a request that is in work."""
BUSY: Final = ServerError("unavailable", "too many connections", retry_after_s=1)
_PIECE_BYTES: Final = 1 << 20
"""What a client must take of a reply in SLOWEST_S."""

_IDLE, _BODY, _TURN, _WORK, _DRAIN, _SLOW, _LINGER, _CLOSED = State


class Front(asyncio.BufferedProtocol):
    """Made by `Listener` for each client."""

    __slots__ = (
        "_at",
        "_choked",
        "_closing",
        "_due_s",
        "_end_s",
        "_errand",
        "_fires_s",
        "_head",
        "_is_cut",
        "_left",
        "_listener",
        "_paused",
        "_plan",
        "_rest",
        "_shared",
        "_slow",
        "_state",
        "_timer",
        "_transport",
        "served",
    )

    def __init__(self, shared: Shared, listener: Listener) -> None:
        self._shared = shared
        self._listener = listener
        self._transport: asyncio.Transport | None = None
        self._slow: Connection | None = None
        self._errand: Errand | None = None
        self._state = _IDLE
        self._rest = self._head = b""
        self._plan: Plan | None = None
        """Of the last head that was ours."""
        self._at = 0
        """How much of the errand's space is filled."""
        self._choked = self._paused = self._closing = self._is_cut = False
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
            self._transport.write(response_bytes.error(BUSY, "", {}))
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """It went, or we closed."""
        self._listener.forget(self)
        self._state = _CLOSED
        self._rest = b""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._errand is not None:
            self._errand.cancel()
            self._errand = None
        if self._slow is not None:
            self._slow.connection_lost(exc)
            self._slow = None
        self._transport = None

    def eof_received(self) -> None:
        """Half a connection is none: the transport closes itself, as under aiohttp."""

    def pause_writing(self) -> None:
        """The transport holds more than it should."""
        self._choked = True
        if self._slow is not None:
            self._slow.pause_writing()

    def resume_writing(self) -> None:
        """The transport holds little again, or nothing."""
        self._choked = False
        if self._slow is not None:
            self._slow.resume_writing()
        if self._state is _DRAIN:
            self._replied()

    def close(self) -> None:
        """End it after the request that is in work, if one is."""
        self._closing = True
        if self._slow is not None:
            self._slow.close()
        if self._state is _IDLE and self._transport is not None:
            self._transport.close()

    @property
    def is_busy(self) -> bool:
        """Whether a request of its own is in work."""
        return self._errand is not None or self._state is _TURN

    @property
    def uses(self) -> int:
        """Requests so far, answered by either."""
        return self.served + (self._slow.requests if self._slow is not None else 0)

    @property
    def is_spare(self) -> bool:
        """Whether no request is lost with it: it is between two, or in the head of one."""
        slow = self._slow
        return (self._state is _IDLE and not self._rest) or (
            self._state is _SLOW and slow is not None and slow.is_idle()
        )

    def abort(self) -> None:
        """End it now."""
        if self._transport is not None:
            self._transport.abort()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - a hint
        """Where the kernel shall write what has come."""
        if self._state is _BODY and self._errand is not None:
            return self._errand.space[self._at :]
        return self._shared.view

    def buffer_updated(self, nbytes: int) -> None:
        """It has written that much."""
        state = self._state
        if state is _IDLE and not self._rest:
            self._take(self._shared.scratch, self._shared.view, nbytes)
        elif state is _BODY:
            self._at += nbytes
            self._fill()
        else:
            self._later(bytes(self._shared.view[:nbytes]))

    def _later(self, data: bytes) -> None:
        """Bytes that follow a request which is in work, or that are aiohttp's."""
        slow = self._slow
        if self._state is _SLOW and slow is not None and not slow.is_between():
            slow.data_received(data)
        elif self._state is not _CLOSED and self._state is not _LINGER:
            self._rest += data
            if len(self._rest) >= REST_LIMIT_BYTES and self._transport is not None:
                self._transport.pause_reading()
                self._paused = True
            if self._state is _SLOW:
                self.returned()

    def _take(self, data: bytes | bytearray, view: memoryview, size: int, *, its_turn: bool = False) -> None:
        """The first bytes of a request; `its_turn`: it has waited for that."""
        end = len(self._head)
        if size >= end > 0 and data.startswith(self._head):  # its only blank line is its end
            plan = self._plan
        else:
            end = data.find(BLANK, 0, size) + len(BLANK)
            plan = self._read_head(bytes(view[:end])) if end >= len(BLANK) else None
        backend = self._shared.inference.backend
        if plan is None or plan.layout.size > backend.max_body_bytes or backend.retired:
            self._hand_over(bytes(view[:size]))
            return
        if not its_turn and not self._shared.turns.may(plan.model, plan.cost):
            self._state, self._rest = _TURN, bytes(view[:size])
            self._shared.turns.wait(plan.model, plan.cost, self._turn_came)
            return
        body = view[end : min(size, end + plan.layout.size)]
        if end + len(body) < size:
            self._rest = bytes(view[end + len(body) : size])
        if not self._begin(plan, whole=len(body) == plan.layout.size):
            self._hand_over(bytes(view[:size]))
        elif self._state is _BODY and self._errand is not None:
            self._at = plan.layout.start + len(body)
            self._errand.space[plan.layout.start : self._at] = body
            self._fill()

    def _turn_came(self) -> bool:
        """Go on with the request that waited; False if its client has gone."""
        if self._state is not _TURN:
            return False
        self._state = _IDLE
        self._next(its_turn=True)
        return True

    def _read_head(self, head: bytes) -> Plan | None:
        """The plan of a head; the last one of a connection is most likely its next one too."""
        plan = self._shared.plans.of(head)
        if plan is not None and len(head) <= KEY_BYTES_LIMIT:
            self._head, self._plan = head, plan
        return plan

    def _begin(self, plan: Plan, *, whole: bool) -> bool:
        """Start an errand, or refuse it; False if aiohttp shall have the request. `whole`: its body is there."""
        core = self._shared.inference
        errand = Errand(core, self._shared.orders, plan, self._deliver)
        try:
            opened = errand.open()
        except MmsupError as error:
            if not whole:
                errand.leave()
                return False  # what is left of the body must be read first; aiohttp does that
            self._errand, self._state = errand, _WORK
            errand.fail(error)
            return True
        if opened:
            self._errand, self._state = errand, _BODY
        return opened

    def _fill(self) -> None:
        """Some of the body has come."""
        errand = self._errand
        assert errand is not None, "a body is filled for nobody"
        if self._at == len(errand.space):
            self._state = _WORK
            errand.run()
            return
        now = self._shared.loop.time()
        if not self._end_s:
            self._end_s = now + request_body.TOTAL_S
        self._watch(min(request_body.IDLE_S, self._end_s - now))

    # Replies.

    def _deliver(self, parts: Parts, close: bool) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return  # `connection_lost` is about to say so
        if close:
            self._closing = True
        self.served += 1
        if len(parts) == 1:
            transport.write(parts[0])
        else:
            transport.set_write_buffer_limits(high=0)  # it says then when it holds nothing, not when it holds little
            for part in parts:
                transport.write(part)
        if self._choked:
            self._state = _DRAIN
            self._left = transport.get_write_buffer_size()
            self._watch(response.SLOWEST_S)
        else:
            if len(parts) > 1:
                transport.set_write_buffer_limits()
            self._replied()

    def _replied(self) -> None:
        """The reply is on its way and none of its memory is needed: the next request may come."""
        errand, self._errand = self._errand, None
        if errand is not None:
            errand.leave()
        if self._transport is not None:
            if self._state is _DRAIN:
                self._transport.set_write_buffer_limits()
            self._rest_or_close()

    def _rest_or_close(self) -> None:
        self._state = _IDLE
        self._end_s = 0.0
        self._due_s = self._shared.loop.time() + IDLE_S
        if not self._closing and not self._rest and not self._paused:
            return
        if self._is_cut and self._transport is not None:
            self._state = _LINGER
            self._transport.write_eof()
            self._watch(LINGER_S)
        elif self._closing and self._transport is not None:
            self._state = _CLOSED
            self._transport.close()
        elif self._rest or self._paused:
            self._shared.loop.call_soon(self._next)

    def _next(self, *, its_turn: bool = False) -> None:
        """What had come while another request was in work, or while this one waited for its turn."""
        if self._state is not _IDLE or self._transport is None:
            return
        data, self._rest = self._rest, b""
        if data:
            self._take(data, memoryview(data), len(data), its_turn=its_turn)
        if self._paused and len(self._rest) < REST_LIMIT_BYTES:
            self._paused = False
            self._transport.resume_reading()

    # aiohttp's handler beside us.

    def _beside(self) -> Connection:
        if self._slow is None:
            assert self._transport is not None, "nothing is handed over on a connection that is gone"
            self._slow = self._listener.connection(self)
            self._slow.connection_made(self._transport)
        return self._slow

    def _hand_over(self, data: bytes) -> None:
        """Give it a request; what follows a head without a body is not yet its."""
        self._state = _SLOW
        self._rest = b""
        slow = self._beside()
        end = data.find(BLANK) + len(BLANK)
        if end < len(BLANK) or end == len(data):
            slow.data_received(data)
            return
        slow.data_received(data[:end])
        self._later(data[end:])

    def returned(self) -> None:
        """The handler waits for a next request: if it holds nothing of one, the next bytes are ours again."""
        slow = self._slow
        if self._state is _SLOW and slow is not None and slow.is_idle() and slow.is_between():
            slow.rest()
            self._rest_or_close()

    # Time.

    def _watch(self, after_s: float) -> None:
        """Something must have happened by then. A timer that fires too early costs less than one for each request."""
        loop = self._shared.loop
        self._due_s = loop.time() + after_s
        if self._timer is not None:
            if self._fires_s <= self._due_s:
                return
            self._timer.cancel()
        self._look_at(self._due_s)

    def _look_at(self, when_s: float) -> None:
        self._fires_s = when_s  # a timer that is due at once is none that uvloop could ask for its time
        self._timer = self._shared.loop.call_at(when_s, self._look)

    def _look(self) -> None:
        self._timer = None
        transport, loop, state = self._transport, self._shared.loop, self._state
        if transport is None:
            return
        if state is _WORK or state is _SLOW or state is _TURN:  # the deadline's, and aiohttp's own timers' business
            self._look_at(loop.time() + IDLE_S)
        elif loop.time() < self._due_s:
            self._look_at(self._due_s)
        elif state is _BODY and self._errand is not None:
            self._state = _WORK
            self._is_cut = True
            self._errand.late(request_body.late())
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
            self._watch(response.SLOWEST_S)
