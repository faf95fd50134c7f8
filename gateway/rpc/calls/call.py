"""One call: its metadata and deadline, the messages that arrive, the replies and the status that go out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, Protocol

from mmsup.gateway.rpc.calls import message_framing, status
from mmsup.gateway.rpc.calls.call_stream import CallStream
from mmsup.gateway.rpc.calls.message_framing import MessageReader
from mmsup.gateway.rpc.calls.message_receiver import MessageReceiver
from mmsup.gateway.rpc.calls.receive_memory import ReceiveMemory
from mmsup.ipc.errors import CallerError, MmsupError
from mmsup.ipc.rpc.header_literals import Headers, block_of, literal

_TIMEOUT: Final = re.compile(rb"([0-9]{1,8})([HMSmun])")
_UNITS_NS: Final = {b"H": 3_600_000_000_000, b"M": 60_000_000_000, b"S": 10**9, b"m": 10**6, b"u": 1000, b"n": 1}
OK_HEADERS: Final = (
    b"\x88"  # :status 200, by the static table
    + literal(b"content-type", b"application/grpc")
    + literal(b"grpc-accept-encoding", message_framing.ACCEPTED.replace(b" ", b""))
)
_NO_GRPC: Final = block_of([(b":status", b"415"), (b"content-type", b"text/plain")])
Parts = Sequence[bytes | memoryview]


class CallHandler(Protocol):
    """What a method does with one call. It ends the call once, by `finish` or `fail`."""

    def on_message(self, message: bytes) -> None:
        """Called for each message; it calls `RpcCall.release` when it needs its memory no more."""

    def on_half_close(self) -> None:
        """The client sends no more messages."""

    def on_cancel(self) -> None:
        """The client has cancelled the call, or its deadline has passed: nothing can be sent any more."""

    def on_sent(self) -> None:
        """What was sent so far has been copied."""

    def on_retire(self) -> None:
        """End a call that has no end of its own, once nothing goes on in it."""


class RpcCall:
    """The handler of its stream. `handler` is set before anything arrives."""

    # fmt: off
    __slots__ = ("_has_headers", "_receiver", "_stream", "handler", "is_over", "metadata", "on_tick", "release")
    # fmt: on

    def __init__(self, stream: CallStream, memory: ReceiveMemory, limit_bytes: int, window: int = 0) -> None:
        """`window`: what a client may send beyond a message that is being received; 0 for a method that takes one."""
        self._stream = stream
        reader = MessageReader(limit_bytes, header(stream.headers, b"grpc-encoding") or b"identity")
        self._receiver = receiver = MessageReceiver(stream, self, memory, reader, window)
        self.on_tick = receiver.on_tick
        self.release = receiver.release
        self.handler: CallHandler
        self.metadata: list[tuple[bytes, bytes]] = []
        """More headers of the response; to be set before the first reply."""
        self._has_headers = False
        self.is_over = False
        """Nothing is sent any more."""

    # What its receiver has for it.

    def on_message(self, message: bytes) -> None:
        self.handler.on_message(message)

    def on_half_close(self) -> None:
        self.handler.on_half_close()

    def refuse(self, error: MmsupError) -> None:
        """The client's messages are not what they should be: an answer, and the end of what is going on."""
        self.fail(error)
        self.handler.on_cancel()

    # The stream's events.

    def on_data(self, data: memoryview) -> None:
        if not self.is_over:
            self._receiver.on_data(data)

    def on_end(self) -> None:
        self._receiver.on_end()

    def on_reset(self) -> None:
        if not self.is_over:
            self._close()
            self.handler.on_cancel()

    def on_retire(self) -> None:
        if not self.is_over:
            self.handler.on_retire()

    def on_sent(self) -> None:
        self.handler.on_sent()

    # What is sent.

    def reply(self, parts: Parts) -> None:
        """Send one message, whose memory must stay until `on_sent`."""
        if self.is_over:
            return
        self._send_headers()
        self._stream.send_data([message_framing.prefix(sum(len(each) for each in parts)), *parts])

    def finish(self, trailers: bytes = status.OK_TRAILERS) -> None:
        """End the call, after what was sent before."""
        if not self.is_over:
            self._close()
            self._send_headers()
            self._stream.end(trailers)

    def _close(self) -> None:
        self.is_over = True
        self._receiver.close()

    def fail(self, error: MmsupError) -> None:
        self.finish(status.error_trailers(error))

    def _send_headers(self) -> None:
        if not self._has_headers:
            self._has_headers = True
            self._stream.send_headers(OK_HEADERS + block_of(self.metadata) if self.metadata else OK_HEADERS)


def header(headers: Headers, name: bytes) -> bytes:
    """The first of this name; empty if there is none."""
    for key, value in headers:
        if key == name:
            return value
    return b""


def timeout_ns(headers: Headers) -> int | None:
    """Of `grpc-timeout`, None without it; CallerError if it is no timeout."""
    given = header(headers, b"grpc-timeout")
    if not given:
        return None
    found = _TIMEOUT.fullmatch(given)
    if found is None:
        raise CallerError("bad_request", "grpc-timeout is no number with a unit")
    return int(found[1]) * _UNITS_NS[found[2]]


def is_grpc(headers: Headers) -> bool:
    kind = header(headers, b"content-type").partition(b";")[0].rstrip().lower()
    is_call = kind == b"application/grpc" or kind.startswith(b"application/grpc+")  # not application/grpc-web
    return is_call and header(headers, b":method") == b"POST"


def refuse_http(stream: CallStream) -> None:
    """Answer a request that is no call of gRPC."""
    stream.end(_NO_GRPC)
