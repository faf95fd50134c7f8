"""One call of the front process, as a stream that a call runs on."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from mmsup.gateway.http2.stream import StreamHandler
from mmsup.ipc.rpc import relay_frames
from mmsup.ipc.rpc.header_literals import Headers


class RelayOutput(Protocol):
    """The connection that the frames go out on."""

    @property
    def is_paused(self) -> bool:
        """The front does not read what it was sent."""

    def write(self, frame: bytes) -> None: ...

    def forget(self, stream: RelayedStream) -> None:
        """It is over."""


class RelayedStream:
    # fmt: off
    __slots__ = (
        "_end", "_output", "_queue", "_send_window", "handler", "headers", "is_closed", "is_ended_by_peer", "number",
        "waits_since_s",
    )
    # fmt: on

    def __init__(self, number: int, headers: Headers, output: RelayOutput) -> None:
        """`handler` is set before anything arrives."""
        self.number = number
        self.headers = headers
        self.handler: StreamHandler
        self.is_ended_by_peer = False
        self.is_closed = False
        self.waits_since_s = 0.0
        """Since when its data waits for the client, by CLOCK_MONOTONIC; 0: it does not."""
        self._output = output
        self._send_window = relay_frames.WINDOW_BYTES
        self._queue: deque[memoryview] = deque()
        self._end: bytes | None = None

    def send_headers(self, block: bytes) -> None:
        if not self.is_closed:
            self._output.write(relay_frames.frame(relay_frames.HEADERS, self.number, block))

    def send_data(self, parts: Sequence[bytes | memoryview]) -> None:
        if not self.is_closed:
            self._queue.extend([memoryview(each).cast("B") for each in parts if len(each)])
            self.pump()

    def end(self, trailers: bytes) -> None:
        if not self.is_closed and self._end is None:
            self._end = trailers
            self.pump()

    def reset(self) -> None:
        """End it without a status."""
        if not self.is_closed:
            self._output.write(relay_frames.frame(relay_frames.CANCEL, self.number))
            self.close()

    def grant(self, size: int) -> None:
        if size > 0 and not self.is_closed and not self.is_ended_by_peer:
            self._output.write(relay_frames.grant(self.number, size))

    def on_granted(self, size: int) -> None:
        self._send_window += size
        self.pump()

    def pump(self) -> None:
        """Send what the front takes now."""
        if self.is_closed:
            return
        was_empty = not self._queue
        while self._queue:
            size = min(self._send_window, relay_frames.DATA_BYTES)
            if size <= 0 or self._output.is_paused:
                self.waits_since_s = self.waits_since_s or time.monotonic()
                return
            self.waits_since_s = 0.0
            payload = self._take(size)
            self._send_window -= len(payload)
            self._output.write(relay_frames.frame(relay_frames.DATA, self.number, payload))
        if not was_empty:
            self.handler.on_sent()
        if self._end is not None:
            self._output.write(relay_frames.frame(relay_frames.TRAILERS, self.number, self._end))
            self.close()

    def _take(self, size: int) -> bytes:
        """As many bytes of the queue, or all."""
        taken: list[memoryview] = []
        while size and self._queue:
            part = self._queue.popleft()
            if size < len(part):
                self._queue.appendleft(part[size:])
                part = part[:size]
            size -= len(part)
            taken.append(part)
        return b"".join(taken)

    def close(self) -> None:
        """Nothing is sent any more."""
        if not self.is_closed:
            self.is_closed = True
            self._output.forget(self)
            if self._queue:
                self._queue.clear()
                self.handler.on_sent()
