"""One client's connection as aiohttp serves it, with the bounds that aiohttp leaves to us; who makes connections.

Time for a head, number of connections, JSON also where the parser refuses, and which kind of listener it came by.
A connection stands alone, or beside a front (front.py), which gives it what it does not serve itself; then it must say
when it is idle and whether it holds a part of a request. For that, private names of aiohttp are used (its version is
pinned, and selftest.py tries them at every start): `_waiter`, `_messages`, `_request_count`, `_current_request`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any, Final, cast

from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestHandler, RequestPayloadError
from aiohttp.web_request import BaseRequest
from aiohttp.web_response import StreamResponse
from aiohttp.web_server import Server

from mmsup.gateway.connections.connection_limit import ConnectionLimit
from mmsup.gateway.connections.context import ConnectionContext
from mmsup.gateway.connections.fast_connection import IDLE_S, LINGER_S, TOO_MANY_CONNECTIONS, FastConnection
from mmsup.gateway.connections.message_boundary import MessageBoundary
from mmsup.gateway.http import error_status as status
from mmsup.gateway.http import response
from mmsup.ipc.errors import CallerError, MmsupError, ServerError

HEAD_S: Final = 10.0
"""From the first byte of a head to its end."""
READ_BYTES: Final = 1 << 18
_log = logging.getLogger("mmsup.gateway")
_HEAD_TIMEOUT: Final = CallerError("body_timeout", "the head of the request did not come in time")
_MALFORMED: Final = CallerError("bad_request", "this is no well-formed HTTP/1.1 request")


class AiohttpConnection(RequestHandler):
    """Made by `Listener` for each client, or for a front that needs one."""

    __slots__ = ("_fast_connection", "_head_timer", "_idle", "_last_body", "_limit", "_message_boundary", "is_local")

    def __init__(
        self, manager: HttpListener, front: FastConnection | None = None, **options: Any
    ) -> None:  # options of aiohttp's, handed on
        self._idle: asyncio.Future[None] | None = None
        self._fast_connection = front
        super().__init__(manager, **options)
        self.is_local = manager.is_local
        self._limit = manager.connection_limit.limit
        self._head_timer: asyncio.TimerHandle | None = None
        self._message_boundary = MessageBoundary()
        self._last_body: StreamReader | None = None

    # aiohttp's handler makes this future when it has nothing to do, and awaits it.

    @property
    def _waiter(self) -> asyncio.Future[None] | None:
        return self._idle

    @_waiter.setter
    def _waiter(self, waiter: asyncio.Future[None] | None) -> None:
        self._idle = waiter
        if waiter is not None and self._fast_connection is not None:
            self._loop.call_soon(self._fast_connection.on_aiohttp_idle)

    @property
    def requests(self) -> int:
        """How many have come here."""
        return int(self._request_count)

    def is_idle(self) -> bool:
        """Whether the handler waits for a request."""
        waiter = self._idle
        return waiter is not None and not waiter.done() and not self._messages and self._current_request is None

    def is_between_requests(self) -> bool:
        """Whether the last byte that it was given is the last of a request, whatever became of that."""
        complete = self._last_body is None or self._last_body.is_eof()
        return self._message_boundary.is_reached(complete=complete) and not self._upgraded

    def suspend(self) -> None:
        """The front serves the next request: no timer of this handler shall end the connection meanwhile."""
        self._stop_timer()
        self.keep_alive(val=True)
        self._message_boundary = MessageBoundary()
        self._last_body = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count it; one too many is told so and closed."""
        super().connection_made(transport)
        manager = self._manager
        if self._fast_connection is None and manager is not None and len(manager.connections) > self._limit:
            self._refuse(TOO_MANY_CONNECTIONS)

    def data_received(self, data: bytes) -> None:
        """Watch the time between the first byte of a head and its end."""
        known = self._request_count
        super().data_received(data)
        if self._fast_connection is not None:
            self._track_boundary(data, self._request_count - known)
        waits_for_head = not self._messages and (self._request_count == 0 or self.is_idle())
        if not waits_for_head:
            self._stop_timer()
        elif data and self._head_timer is None:
            self._head_timer = self._loop.call_later(HEAD_S, self._refuse, _HEAD_TIMEOUT)

    def _track_boundary(self, data: bytes, told: int) -> None:
        """Know where in a request these bytes end, of which the parser told `told` messages."""
        messages = list(self._messages)[-told:] if told else []
        lengths = [_length(message) for message, _ in messages]
        self._message_boundary.on_bytes(data, lengths if len(lengths) == told else [None] * told)
        for message, body in messages:
            last = self._last_body
            if not isinstance(message, RawRequestMessage) and last is not None and not last.is_eof():
                last.set_exception(RequestPayloadError("the framing of the body is broken"))  # nobody else says so
            self._last_body = body

    def connection_lost(self, exc: BaseException | None) -> None:
        """The end."""
        self._stop_timer()
        super().connection_lost(exc)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse(self, error: MmsupError) -> None:
        """Answer outside of any request, then close."""
        self._head_timer = None
        if self.transport is None:
            return
        body = status.body(error)
        lines = [
            f"HTTP/1.1 {status.http_status(error.code)} Refused",
            f"Content-Length: {len(body)}",
            "Connection: close",
        ]
        lines += [f"{name}: {value}" for name, value in response.response_headers(response.JSON).items()]
        self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)
        self.force_close()

    def handle_error(
        self,
        request: BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> StreamResponse:
        """What aiohttp's parser refuses, and what escapes our handlers, which is a bug of ours."""
        if status < 500:
            _log.debug("malformed request: %s", message)
            made = response.error_response(_MALFORMED)
        else:
            _log.error("bug: an error escaped the handler", exc_info=exc)
            made = response.error_response(ServerError("internal", "an internal error; it was logged"))
        if request.writer.output_size > 0:
            raise ConnectionError("a reply had begun")
        made.force_close()
        return made


def _length(message: object) -> int | None:
    """The length that a head gives its body, None for none (or if it is no head, but an error)."""
    headers = getattr(message, "headers", {})
    given = headers.get("Content-Length", "0" if "Transfer-Encoding" not in headers else "")
    return int(given) if given.isdecimal() else None


class HttpListener(Server):
    """What serves one listening socket; `is_local`: only this machine can reach it.

    With `shared` its clients meet the front, without it aiohttp alone.
    """

    def __init__(  # aiohttp's own type of handlers is private
        self, handler: Any, *, is_local: bool, shared: ConnectionContext | None = None
    ) -> None:
        super().__init__(handler, handler_cancellation=True)
        self.is_local = is_local
        self._context = shared
        self.connection_limit = ConnectionLimit()
        self._changed = asyncio.Event()

    def __call__(self) -> RequestHandler | FastConnection:  # type: ignore[override] # a protocol of either kind
        """A new connection."""
        return self.make_aiohttp_connection(None) if self._context is None else FastConnection(self._context, self)

    def make_aiohttp_connection(self, front: FastConnection | None) -> AiohttpConnection:
        """A connection of aiohttp's, alone or beside a front."""
        return AiohttpConnection(
            self,
            front,
            loop=self._loop,
            keepalive_timeout=IDLE_S,
            lingering_time=LINGER_S,
            read_bufsize=READ_BYTES,
            auto_decompress=False,
            access_log=cast("logging.Logger", None),  # nothing per request; None is how aiohttp is told so
        )

    def admit(self, front: FastConnection, transport: asyncio.BaseTransport) -> bool:
        """A client came; False if it is one too many."""
        peer = transport.get_extra_info("peername")
        return self.connection_limit.admit(front, str(peer[0]) if isinstance(peer, tuple) and peer else "")

    def remove(self, front: FastConnection) -> None:
        """It is gone."""
        self.connection_limit.remove(front)
        self._changed.set()

    @property
    def is_empty(self) -> bool:
        """Whether it has no connection."""
        return not self.connection_limit.connections and not self.connections

    def pre_shutdown(self) -> None:
        """Let each connection end with the request that it is at."""
        for front in list(self.connection_limit.connections):
            front.close()
        super().pre_shutdown()

    async def shutdown(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - as aiohttp has it
        """End all connections, those that are at a request after `timeout` at the latest."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while any(each.is_busy for each in self.connection_limit.connections):
                    self._changed.clear()
                    await self._changed.wait()
        await super().shutdown(timeout)
        for front in list(self.connection_limit.connections):
            front.abort()
        while self.connection_limit.connections:
            self._changed.clear()
            await self._changed.wait()
