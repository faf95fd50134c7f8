"""One stream of a connection: what it may send, what it has still to send, and who takes what arrives on it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from mmsup.gateway.http2 import frames
from mmsup.gateway.http2.outgoing import Outgoing
from mmsup.gateway.http2.peer_windows import PeerWindows
from mmsup.ipc.rpc.header_literals import Headers


class StreamHandler(Protocol):
    """Takes what arrives on one stream. Nothing but `on_sent` is called after the stream was ended or reset by us, and
    nothing at all after `on_reset`."""

    def on_data(self, data: memoryview) -> None:
        """A part of the body, valid until this returns."""

    def on_end(self) -> None:
        """The body is complete."""

    def on_reset(self) -> None:
        """The peer has cancelled the stream, or is gone."""

    def on_sent(self) -> None:
        """All that was sent so far has been copied, or will never be sent: its memory may be used again."""

    def on_retire(self) -> None:
        """The connection shall end: the stream, too, once it is idle."""

    def on_tick(self, now_s: float) -> None:
        """Called every few seconds while the stream is open, with CLOCK_MONOTONIC."""


class Stream:
    # fmt: off
    __slots__ = (
        "_end", "_forget", "_outgoing", "_queue", "_windows", "handler", "headers", "is_closed", "is_ended_by_peer",
        "number", "receive_window", "send_window",
    )
    # fmt: on

    def __init__(
        self, number: int, headers: Headers, outgoing: Outgoing, windows: PeerWindows, forget: Callable[[Stream], None]
    ) -> None:
        """`forget` is called when the stream has ended. `handler` is set before anything arrives."""
        self.number = number
        self.headers = headers
        self._outgoing = outgoing
        self._windows = windows
        self._forget = forget
        self.handler: StreamHandler
        self.receive_window = 0
        self.send_window = windows.initial
        self.is_ended_by_peer = False
        self.is_closed = False
        """Nothing is sent or received any more."""
        self._queue: deque[memoryview] = deque()
        self._end: bytes | None = None
        """The block of the trailers, once all data is queued."""

    def send_headers(self, block: bytes) -> None:
        """The first of a response. The block is at most DEFAULT_FRAME_BYTES long, as that of `end`."""
        if not self.is_closed:
            self._outgoing.write(frames.head(len(block), frames.HEADERS, frames.END_HEADERS, self.number), block)

    def send_data(self, parts: Sequence[bytes | memoryview]) -> None:
        """Sends as the peer's windows allow; the memory of what waits must stay as it is until `on_sent`."""
        if not self.is_closed:
            self._queue.extend([memoryview(each).cast("B") for each in parts if len(each)])
            self.pump()

    def end(self, trailers: bytes) -> None:
        """Send these trailers after all data; the stream is closed then."""
        if not self.is_closed and self._end is None:
            self._end = trailers
            self.pump()

    def reset(self, code: int) -> None:
        """End the stream at once."""
        if not self.is_closed:
            self._outgoing.write(frames.rst_stream(self.number, code))
            self._forget(self)

    def grant(self, size: int) -> None:
        """Let the peer send as many bytes more."""
        if size > 0 and not self.is_closed and not self.is_ended_by_peer:
            self.receive_window += size
            self._outgoing.write(frames.window_update(self.number, size))

    def pump(self) -> None:
        """Send what the windows allow, and the connection takes now."""
        if self.is_closed:
            return
        windows, queue = self._windows, self._queue
        was_empty = not queue
        while queue:
            size = min(len(queue[0]), self.send_window, windows.connection, windows.frame_bytes)
            if size <= 0 or self._outgoing.is_full:
                windows.waiting.setdefault(self, time.monotonic())
                return
            part = queue.popleft()
            if size < len(part):
                queue.appendleft(part[size:])
                part = part[:size]
            self.send_window -= size
            windows.connection -= size
            windows.waiting.pop(self, None)
            self._outgoing.write_data(frames.head(size, frames.DATA, 0, self.number), bytes(part))
        if not was_empty:
            self.handler.on_sent()
        if self._end is not None:
            self._send_end(self._end)

    def _send_end(self, block: bytes) -> None:
        flags = frames.END_HEADERS | frames.END_STREAM
        self._outgoing.write(frames.head(len(block), frames.HEADERS, flags, self.number), block)
        if not self.is_ended_by_peer:  # what else it sends is of no use: RFC 9113, 8.1
            self._outgoing.write(frames.rst_stream(self.number, frames.NO_ERROR))
        self._forget(self)

    def close(self) -> None:
        """Called when the stream is forgotten: nothing is sent any more."""
        self.is_closed = True
        self._windows.waiting.pop(self, None)
        if self._queue:
            self._queue.clear()
            self.handler.on_sent()
