"""How much the peer lets us send (RFC 9113, 5.2): its window for the connection, and the streams that wait for it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from mmsup.gateway.http2.frames import (
    DEFAULT_FRAME_BYTES,
    DEFAULT_WINDOW,
    FLOW_CONTROL_ERROR,
    MAX_WINDOW,
    ConnectionFault,
)


class WindowedStream(Protocol):
    """A stream whose data waits."""

    send_window: int

    def pump(self) -> None:
        """Send what the windows allow."""


class PeerWindows:
    __slots__ = ("connection", "frame_bytes", "initial", "waiting")

    def __init__(self) -> None:
        self.connection = DEFAULT_WINDOW
        self.initial = DEFAULT_WINDOW
        """Of a stream that is opened now."""
        self.frame_bytes = DEFAULT_FRAME_BYTES
        self.waiting: dict[WindowedStream, float] = {}
        """Streams whose data waits for a window, in that order, and since when by CLOCK_MONOTONIC."""

    def grow(self, size: int) -> None:
        """The peer takes as many bytes more on the connection."""
        self.connection += size
        if self.connection > MAX_WINDOW:
            raise ConnectionFault(FLOW_CONTROL_ERROR, "the window of the connection is too large")
        self.pump()

    def pump(self) -> None:
        """Let the streams send that wait, as far as they may."""
        for stream in list(self.waiting):
            if self.connection > 0 and stream.send_window > 0:
                stream.pump()

    def change_initial(self, size: int, streams: Iterable[WindowedStream]) -> None:
        """The peer's setting, which changes the windows of all its open streams too (6.9.2)."""
        by, self.initial = size - self.initial, size
        for stream in streams:
            stream.send_window += by
            if stream.send_window > MAX_WINDOW:
                raise ConnectionFault(FLOW_CONTROL_ERROR, "the window of a stream is too large")
            if by > 0:
                stream.pump()
