"""Every call that grpcio takes, whatever its method: to a gateway and back, byte by byte."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Any, Final
from urllib.parse import unquote

import grpc

from mmsup.gateway.grpcio_front.relay_link import RelayLink, RelayLinks
from mmsup.gateway.grpcio_front.relayed_call import CallLost, RelayedCall
from mmsup.ipc.rpc.header_literals import Headers

Context = Any  # grpc.aio.ServicerContext, which has no types
NO_GATEWAY: Final = "no process of the server takes calls now; try again"
LOST: Final = "the process that served this call has ended; try again"
_STATUS: Final = {each.value[0]: each for each in grpc.StatusCode}
_OF_TRANSPORT: Final = (b":status", b"content-type", b"grpc-accept-encoding", b"grpc-status", b"grpc-message")
_UNITS: Final = ((1, b"u"), (1000, b"m"), (10**6, b"S"))
"""Microseconds of each unit that a deadline is written in."""
_TIMEOUT_LIMIT: Final = 10**8
"""`grpc-timeout` has eight digits."""


class CallService(grpc.GenericRpcHandler):  # type: ignore[misc]  # the library has no types
    def __init__(self, links: RelayLinks, *, is_local: bool) -> None:
        """`is_local`: only this machine can reach the listener."""
        self._links = links
        self._is_local = is_local

    def service(self, handler_call_details: Any) -> Any:  # of grpcio, which has no types
        return grpc.stream_stream_rpc_method_handler(partial(self._serve, handler_call_details.method))

    async def _serve(self, method: str, messages: AsyncIterator[bytes], context: Context) -> None:
        try:
            link = await self._links.get()
        except OSError:
            _end(context, grpc.StatusCode.UNAVAILABLE, NO_GATEWAY)
            return
        call = link.open(_headers(method, context), is_local=self._is_local)
        pump = asyncio.create_task(_send_messages(messages, link, call), name="messages")
        try:
            await _take_replies(call, context)
        except CallLost:
            _end(context, grpc.StatusCode.UNAVAILABLE, LOST)
        finally:
            pump.cancel()
            link.forget(call)


async def _send_messages(messages: AsyncIterator[bytes], link: RelayLink, call: RelayedCall) -> None:
    async for message in messages:
        await link.wait_until_writable()
        await call.send(message)
    call.send_end()


async def _take_replies(call: RelayedCall, context: Context) -> None:
    while True:
        event = await call.next_event()
        if isinstance(event, bytes):
            await context.write(event)
            continue
        given = dict(event)
        metadata = [(name.decode(), value.decode("latin-1")) for name, value in event if name not in _OF_TRANSPORT]
        if b"grpc-status" not in given:
            await context.send_initial_metadata(metadata)
            continue
        context.set_trailing_metadata(metadata)
        code = _STATUS.get(int(given[b"grpc-status"]), grpc.StatusCode.UNKNOWN)
        _end(context, code, unquote(given.get(b"grpc-message", b"").decode("latin-1")))
        return


def _end(context: Context, code: grpc.StatusCode, text: str) -> None:
    if code is not grpc.StatusCode.OK:
        context.set_code(code)
        context.set_details(text)


def _headers(method: str, context: Context) -> Headers:
    """Of the call as over HTTP/2. Its messages are not compressed any more."""
    made: Headers = [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", method.encode()),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
    ]
    remaining_s = context.time_remaining()
    if remaining_s is not None:
        made.append((b"grpc-timeout", _timeout(remaining_s)))
    for name, value in context.invocation_metadata():
        made.append((name.encode(), value if isinstance(value, bytes) else value.encode("latin-1", "replace")))
    return made


def _timeout(seconds: float) -> bytes:
    microseconds = max(int(seconds * 1e6), 1)
    for unit, letter in _UNITS:
        if microseconds // unit < _TIMEOUT_LIMIT:
            return b"%d%s" % (microseconds // unit, letter)
    return b"%dS" % (_TIMEOUT_LIMIT - 1)
