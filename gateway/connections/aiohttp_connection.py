"""One client connection served by aiohttp, with the limits that aiohttp lacks.

These are the time for a head, the number of connections, and JSON bodies for errors of the parser too.

A connection stands alone, or beside a FastConnection, which hands it the requests that it does not serve itself; then
it must know when it is idle and whether it holds a part of a request. That takes private names of aiohttp (its version
is pinned, and self_test.py tries them at every start): `_waiter`, `_messages`, `_request_count`, `_current_request`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

from aiohttp.http_parser import RawRequestMessage
from aiohttp.http_writer import HttpVersion10, HttpVersion11
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import RequestHandler, RequestPayloadError, _ErrInfo
from aiohttp.web_request import BaseRequest
from aiohttp.web_response import StreamResponse
from aiohttp.web_server import Server

from mmsup.gateway.connections.body_framing import BodyFraming
from mmsup.gateway.connections.message_boundary import MessageBoundary
from mmsup.gateway.http import error_status, response
from mmsup.gateway.http.host_policy import HostPolicy
from mmsup.ipc.errors import CallerError, MmsupError, ServerError

HEAD_S: Final = 10.0
"""From the first byte of a head to its end."""
TOO_MANY_CONNECTIONS: Final = ServerError("unavailable", "too many connections", retry_after_s=1)
_log = logging.getLogger("mmsup.gateway")
_HEAD_TIMEOUT: Final = CallerError("body_timeout", "the head of the request did not come in time")
_TOO_FINE: Final = CallerError("bad_request", "the body has too many small chunks: send it in larger ones")
_REFUSALS: Final = {
    501: CallerError("not_implemented", "this transfer coding is not known here: use chunked alone"),
    505: CallerError("http_version", "this version of HTTP is not served: use HTTP/1.1"),
}
_MALFORMED: Final = CallerError("bad_request", "this is no well-formed HTTP/1.1 request")


class AiohttpConnection(RequestHandler):
    """`on_idle`: called whenever the handler waits for a request; only beside a FastConnection."""

    # fmt: off
    __slots__ = (
        "_framing", "_head_timer", "_idle", "_is_last", "_last_body", "_limit", "_message_boundary", "_on_idle",
        "hosts", "is_local",
    )
    # fmt: on

    def __init__(
        self,
        manager: Server,
        on_idle: Callable[[], None] | None,
        *,
        is_local: bool,
        hosts: HostPolicy,
        max_connections: int,
        **options: Any,  # passed on to aiohttp
    ) -> None:
        self._idle: asyncio.Future[None] | None = None
        self._on_idle = on_idle
        super().__init__(manager, **options)
        self.is_local = is_local
        self.hosts = hosts
        self._limit = max_connections
        self._head_timer: asyncio.TimerHandle | None = None
        self._message_boundary = MessageBoundary()
        self._last_body: StreamReader | None = None
        self._framing = BodyFraming()
        self._is_last = False
        """No request follows the last one: it ends the connection, or could not be read."""

    # aiohttp's handler sets this future and awaits it when it has no request.

    @property
    def _waiter(self) -> asyncio.Future[None] | None:
        return self._idle

    @_waiter.setter
    def _waiter(self, waiter: asyncio.Future[None] | None) -> None:  # pyright: ignore - aiohttp has a plain attribute
        self._idle = waiter
        if waiter is not None and self._on_idle is not None:
            self._loop.call_soon(self._on_idle)

    @property
    def requests(self) -> int:
        return int(self._request_count)

    def is_idle(self) -> bool:
        waiter = self._idle
        return waiter is not None and not waiter.done() and not self._messages and self._current_request is None

    def is_between_requests(self) -> bool:
        """Whether the last byte received is the last one of a request."""
        complete = self._last_body is None or self._last_body.is_eof()
        return self._message_boundary.is_reached(complete=complete) and not self._upgraded

    def suspend(self) -> None:
        """The FastConnection serves the next request: stop the timers that would close the connection meanwhile."""
        self._stop_timer()
        self.keep_alive(val=True)
        self._message_boundary = MessageBoundary()
        self._last_body = None
        self._framing.start(0)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Refuse the connection if it is one too many."""
        super().connection_made(transport)
        manager = self._manager
        if self._on_idle is None and manager is not None and len(manager.connections) > self._limit:
            self._refuse(TOO_MANY_CONNECTIONS)

    def data_received(self, data: bytes) -> None:
        """Limit the time between the first byte of a head and its end."""
        rest = data
        if not data:
            self._feed(data)  # aiohttp has room again for what its parser holds
        while rest:
            if self._is_last and (self._last_body is None or self._last_body.is_eof() or self._framing.left == 0):
                break  # RFC 9112, 9.6: nothing is read behind a request that ends its connection
            size = self._framing.next_size(rest)
            self._feed(rest[:size])
            rest = rest[size:]
        waits_for_head = not self._messages and (self._request_count == 0 or self.is_idle())
        if not waits_for_head:
            self._stop_timer()
        elif data and self._head_timer is None:
            self._head_timer = self._loop.call_later(HEAD_S, self._refuse, _HEAD_TIMEOUT)

    def _feed(self, data: bytes) -> None:
        """Give bytes to the parser, and note where in a request they end."""
        known = self._request_count
        super().data_received(data)
        body, framing = self._last_body, self._framing
        if self._request_count == known and body is not None and not body.is_eof():
            framing.on_bytes(len(data))
            # While reading is paused the parser holds bytes whose content is not counted yet; they are few.
            if not self._reading_paused and framing.is_too_fine(body.total_bytes):
                body.set_exception(_TOO_FINE)
                self._is_last, self._last_body = True, None
                return
        elif body is not None and body.is_eof():
            framing.start(0)
        count = self._request_count - known
        for index in range(len(self._messages) - count, len(self._messages)):
            message, body = self._messages[index]
            if status := _refused_status(message):
                refused = _ErrInfo(status=status, exc=_REFUSALS[status], message="")
                self._messages[index] = refused, EMPTY_PAYLOAD
            ends = not isinstance(message, RawRequestMessage) or message.should_close or message.upgrade
            self._is_last = bool(status) or ends
        messages = list(self._messages)[-count:] if count else []
        lengths = [_body_length(message) for message, _ in messages]
        self._message_boundary.on_bytes(data, lengths if len(lengths) == count else [None] * count)
        for message, body in messages:
            last = self._last_body
            if not isinstance(message, RawRequestMessage) and last is not None and not last.is_eof():
                last.set_exception(RequestPayloadError("the framing of the body is broken"))  # aiohttp itself does not
            self._last_body = body
            self._framing.start(0 if body.is_eof() else _body_length(message))

    def log_exception(self, *arguments: Any, **options: Any) -> None:  # as aiohttp has it
        """A body that does not follow its framing is the client's fault, and no trace is printed for it."""
        if isinstance(options.get("exc_info"), RequestPayloadError | MmsupError):
            _log.debug("a body could not be read: %s", options["exc_info"])
        else:
            super().log_exception(*arguments, **options)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse(self, error: MmsupError) -> None:
        """Send an error outside of any request, then close."""
        self._head_timer = None
        if self.transport is None:
            return
        body = error_status.body(error)
        lines = [
            f"HTTP/1.1 {error_status.STATUS[error.code]} Refused",
            f"Content-Length: {len(body)}",
            "Connection: close",
        ]
        lines += [f"{name}: {value}" for name, value in response.response_headers(response.JSON).items()]
        self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)
        self.force_close()

    def handle_error(
        self, request: BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> StreamResponse:
        """Errors of aiohttp's parser, and exceptions that escape our handlers, which are bugs."""
        if status in _REFUSALS:
            answer = response.error_response(_REFUSALS[status])
        elif status < 500:
            _log.debug("malformed request: %s", message)
            answer = response.error_response(_MALFORMED)
        else:
            _log.error("bug: an error escaped the handler", exc_info=exc)
            answer = response.error_response(ServerError("internal", "an internal error; it was logged"))
        if request.writer.output_size > 0:
            raise ConnectionError("the response had started")
        answer.force_close()
        return answer


def _body_length(message: object) -> int | None:
    """The body length that a head announces; None if it announces none, or if the message is an error."""
    headers = getattr(message, "headers", {})
    given = headers.get("Content-Length", "0" if "Transfer-Encoding" not in headers else "")
    return int(given) if given.isdecimal() else None


def _refused_status(message: object) -> int:
    """The HTTP status of a request that the parser reads and this server does not serve; 0: it does."""
    if not isinstance(message, RawRequestMessage):
        return 0
    if message.version not in (HttpVersion10, HttpVersion11):
        return 505
    codings = [each.strip().lower() for each in message.headers.getall("Transfer-Encoding", [])]
    return 501 if codings not in ([], ["chunked"]) else 0
