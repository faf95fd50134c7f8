"""How much the peer lets us send (RFC 9113, 5.2): its window for the connection, and the streams that wait for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmsup.gateway.http2.frames import (
    DEFAULT_FRAME_BYTES,
    DEFAULT_WINDOW,
    FLOW_CONTROL_ERROR,
    MAX_WINDOW,
    ConnectionFault,
)

if TYPE_CHECKING:
    from mmsup.gateway.http2.stream import Stream


class PeerWindows:
    __slots__ = ("connection", "frame_bytes", "initial", "waiting")

    def __init__(self) -> None:
        self.connection = DEFAULT_WINDOW
        self.initial = DEFAULT_WINDOW
        """Of a stream that is opened now."""
        self.frame_bytes = DEFAULT_FRAME_BYTES
        self.waiting: dict[Stream, None] = {}
        """In the order in which they wait."""

    def grow(self, size: int) -> None:
        """The peer takes as many bytes more on the connection."""
        self.connection += size
        if self.connection > MAX_WINDOW:
            raise ConnectionFault(FLOW_CONTROL_ERROR, "the window of the connection is too large")
        for stream in list(self.waiting):
            if self.connection <= 0:
                return
            self.waiting.pop(stream, None)
            stream.pump()

    def change_initial(self, size: int, streams: list[Stream]) -> None:
        """The peer's setting, which changes the windows of all its open streams too (6.9.2)."""
        by, self.initial = size - self.initial, size
        for stream in streams:
            stream.send_window += by
            if stream.send_window > MAX_WINDOW:
                raise ConnectionFault(FLOW_CONTROL_ERROR, "the window of a stream is too large")
            if by > 0:
                stream.pump()
