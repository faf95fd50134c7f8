"""One client's connection: aiohttp's own, with the bounds that aiohttp leaves to us.

Time for a head, number of connections, JSON also where the parser refuses, and which kind of listener it came by.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final, cast

from aiohttp.web_protocol import RequestHandler
from aiohttp.web_request import BaseRequest
from aiohttp.web_response import StreamResponse
from aiohttp.web_server import Server

from mmsup.gateway import answer, status
from mmsup.ipc.errors import CallerError, MmsupError, ServerError

HEAD_S: Final = 10.0
"""From the first byte of a head to its end."""
IDLE_S: Final = 75.0
"""Between requests."""
LINGER_S: Final = 5.0
"""How long the rest of a refused body is read, so that the client reads our answer and not a reset."""
CONNECTION_LIMIT: Final = 8192
READ_BYTES: Final = 1 << 18
_log = logging.getLogger("mmsup.gateway")
_BUSY: Final = ServerError("unavailable", "too many connections", retry_after_s=1)
_LATE: Final = CallerError("body_timeout", "the head of the request did not come in time")
_MALFORMED: Final = CallerError("bad_request", "this is no well-formed HTTP/1.1 request")


class Connection(RequestHandler):
    """Made by `Listener` for each client."""

    __slots__ = ("_head_timer", "is_local")

    def __init__(self, manager: Listener, **options: Any) -> None:  # options of aiohttp's, handed on
        super().__init__(manager, **options)
        self.is_local = manager.is_local
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count it; one too many is told so and closed."""
        super().connection_made(transport)
        manager = self._manager
        if manager is not None and len(manager.connections) > CONNECTION_LIMIT:
            self._refuse(_BUSY)

    def data_received(self, data: bytes) -> None:
        """Watch the time between the first byte of a head and its end."""
        super().data_received(data)
        waits_for_head = self._waiter is not None and not self._waiter.done() and not self._messages
        if not waits_for_head:
            self._stop_timer()
        elif data and self._head_timer is None:
            self._head_timer = self._loop.call_later(HEAD_S, self._refuse, _LATE)

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
        lines += [f"{name}: {value}" for name, value in answer.head(answer.JSON).items()]
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
            made = answer.error(_MALFORMED)
        else:
            _log.error("bug: an error escaped the handler", exc_info=exc)
            made = answer.error(ServerError("internal", "an internal error; it was logged"))
        if request.writer.output_size > 0:
            raise ConnectionError("a reply had begun")
        made.force_close()
        return made


class Listener(Server):
    """What serves one listening socket; `is_local`: only this machine can reach it."""

    def __init__(self, handler: Any, *, is_local: bool) -> None:  # aiohttp's own type of handlers is private
        super().__init__(handler, handler_cancellation=True)
        self.is_local = is_local

    def __call__(self) -> RequestHandler:
        """A new connection."""
        return Connection(
            self,
            loop=self._loop,
            keepalive_timeout=IDLE_S,
            lingering_time=LINGER_S,
            read_bufsize=READ_BYTES,
            auto_decompress=False,
            access_log=cast("logging.Logger", None),  # nothing per request; None is how aiohttp is told so
        )
