"""Takes frames out of the bytes of a connection. Pure.

A DATA frame may be large: its payload is passed on as it comes. Other frames are held until they are complete, and may
be OTHER_FRAME_BYTES long.
"""

from __future__ import annotations

from typing import Final, Protocol

from mmsup.gateway.http2.frames import (
    DATA,
    FRAME_SIZE_ERROR,
    HEAD_BYTES,
    PADDED,
    PREFACE,
    PROTOCOL_ERROR,
    ConnectionFault,
    read_head,
)

FRAME_BYTES: Final = 1 << 20
"""The largest DATA frame, announced: few large frames are cheaper than many small ones."""
OTHER_FRAME_BYTES: Final = 1 << 14
FRAMES_A_TURN: Final = 128
"""Passed on by one `feed`: what arrives at once may hold thousands, and each may be a call that is served."""


class FrameSink(Protocol):
    def on_frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        """A frame that is not DATA."""

    def on_data_head(self, stream: int, size: int) -> None:
        """A DATA frame begins; flow control counts its `size` bytes, with padding."""

    def on_data(self, stream: int, data: memoryview) -> None:
        """A part of its data, valid until this returns."""

    def on_data_end(self, stream: int, flags: int) -> None: ...


class FrameReader:
    # fmt: off
    __slots__ = (
        "_data_left", "_flags", "_held", "_is_in_data", "_padding_left", "_preface_at", "_stream", "has_more",
    )
    # fmt: on

    def __init__(self) -> None:
        self._preface_at = 0
        self._held = b""
        self._is_in_data = False
        self.has_more = False
        """Whether frames are left for another `feed`, of nothing, after others had their turn."""
        self._stream = self._flags = self._data_left = self._padding_left = 0

    @property
    def has_begun(self) -> bool:
        """Whether the client's preface is complete."""
        return self._preface_at == len(PREFACE)

    def feed(self, data: bytes, sink: FrameSink) -> None:
        """Pass on what is complete; ConnectionFault for what is no frame, or a larger one than may be sent."""
        if self._held:
            data = self._held + data
        view = memoryview(data)
        at, end = self._skip_preface(view), len(view)
        frames = 0
        self.has_more = False
        while at < end:
            if self._is_in_data:
                at = self._take_data(view, at, sink)
                continue
            if end - at < HEAD_BYTES:
                break
            if frames == FRAMES_A_TURN:
                self.has_more = True
                break
            frames += 1
            size, kind, flags, stream = read_head(view, at)
            if kind == DATA:
                if not self._begin_data(view, at, (size, flags, stream), sink):
                    break
                at += HEAD_BYTES + (1 if flags & PADDED else 0)
                if not self._data_left and not self._padding_left:
                    self._is_in_data = False
                    sink.on_data_end(stream, flags)
                continue
            if size > OTHER_FRAME_BYTES:
                raise ConnectionFault(FRAME_SIZE_ERROR, "a frame is too large")
            if end - at < HEAD_BYTES + size:
                break
            at += HEAD_BYTES + size
            sink.on_frame(kind, flags, stream, bytes(view[at - size : at]))
        self._held = bytes(view[at:])

    def _skip_preface(self, view: memoryview) -> int:
        """Where frames begin."""
        if self.has_begun:
            return 0
        size = min(len(PREFACE) - self._preface_at, len(view))
        if view[:size] != PREFACE[self._preface_at : self._preface_at + size]:
            raise ConnectionFault(PROTOCOL_ERROR, "this port speaks gRPC (HTTP/2 without TLS)")
        self._preface_at += size
        return size

    def _begin_data(self, view: memoryview, at: int, head: tuple[int, int, int], sink: FrameSink) -> bool:
        """False if its first byte, the length of its padding, is not there yet."""
        size, flags, stream = head
        if size > FRAME_BYTES:
            raise ConnectionFault(FRAME_SIZE_ERROR, "a DATA frame is too large")
        padding = 0
        if flags & PADDED:
            if not size:
                raise ConnectionFault(FRAME_SIZE_ERROR, "a padded frame is empty")
            if len(view) - at <= HEAD_BYTES:
                return False
            padding = view[at + HEAD_BYTES]
            if padding >= size:
                raise ConnectionFault(PROTOCOL_ERROR, "padding is longer than its frame")
        sink.on_data_head(stream, size)
        self._is_in_data, self._stream, self._flags = True, stream, flags
        self._data_left, self._padding_left = size - padding - (1 if flags & PADDED else 0), padding
        return True

    def _take_data(self, view: memoryview, at: int, sink: FrameSink) -> int:
        size = min(self._data_left, len(view) - at)
        if size:
            self._data_left -= size
            sink.on_data(self._stream, view[at : at + size])
        at += size
        skipped = min(self._padding_left, len(view) - at)
        self._padding_left -= skipped
        if not self._data_left and not self._padding_left:
            self._is_in_data = False
            sink.on_data_end(self._stream, self._flags)
        return at + skipped
