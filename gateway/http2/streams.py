"""The streams of one connection, and what the client's frames mean for them: RFC 9113, sections 5, 6 and 8."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from mmsup.gateway.http2 import frames
from mmsup.gateway.http2.flood_limit import ANSWERED, EMPTY, RESETS, UPDATES, FloodLimit
from mmsup.gateway.http2.frames import ConnectionFault, StreamFault
from mmsup.gateway.http2.header_blocks import BLOCK_LIMIT_BYTES, HeaderBlocks
from mmsup.gateway.http2.outgoing import Outgoing
from mmsup.gateway.http2.peer_windows import PeerWindows
from mmsup.gateway.http2.stream import Stream, StreamHandler
from mmsup.ipc.rpc.header_literals import Headers
from mmsup.ipc.rpc.keepalive import DEFAULT_KEEPALIVE, RpcKeepalive

STREAMS_LIMIT: Final = 1000
"""Open ones; announced."""
STREAM_WINDOW: Final = 1 << 18
"""What a client may send on a stream before its handler grants more; announced."""
CONNECTION_WINDOW: Final = 1 << 24
"""Given back as bytes arrive: it is the handlers that bound what is held."""
PINGS_EACH_FRAME: Final = 4
TOO_MANY_PINGS: Final = "too_many_pings"
"""Clients of gRPC know this text, and send fewer."""
SHORT_S: Final = 0.05
"""A reset of a stream that is younger is one of a flood's. Older ones are those of calls that took too long, of which
a client may have as many as streams, all at one time."""
_PSEUDO: Final = frozenset({b":method", b":scheme", b":path", b":authority"})
_FORBIDDEN: Final = frozenset({b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"})


class Streams:
    """`open_stream` makes the handler of each stream, and raises nothing."""

    def __init__(
        self,
        outgoing: Outgoing,
        open_stream: Callable[[Stream], StreamHandler],
        keepalive: RpcKeepalive = DEFAULT_KEEPALIVE,
    ) -> None:
        self._outgoing = outgoing
        self._open_stream = open_stream
        self._blocks = HeaderBlocks()
        self._flood = FloodLimit(time.monotonic(), keepalive)
        self._unfinished: tuple[int, int, bytearray] | None = None
        """Stream, flags and block of a HEADERS frame that CONTINUATION frames follow."""
        self._received_bytes = 0
        """On the connection, since its window was last given back."""
        self._padding_bytes = 0
        """Of the DATA frame that is being received: what is not its data."""
        self.windows = PeerWindows()
        self.open: dict[int, Stream] = {}
        self._opened_s: dict[int, float] = {}
        """When each of them was opened, by CLOCK_MONOTONIC."""
        self.last_number = 0
        self.is_ending = False
        """No new streams are opened."""

    def forget(self, stream: Stream) -> None:
        """The stream has ended."""
        self.open.pop(stream.number, None)
        self._opened_s.pop(stream.number, None)
        stream.close()

    # What arrives.

    def on_frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if self._unfinished is not None and (kind != frames.CONTINUATION or stream != self._unfinished[0]):
            raise ConnectionFault(frames.PROTOCOL_ERROR, "a header block is interrupted")
        try:
            if kind == frames.HEADERS:
                self._on_headers(flags, stream, frames.header_block(payload, flags))
            elif kind == frames.CONTINUATION:
                self._on_continuation(flags, payload)
            elif kind == frames.WINDOW_UPDATE:
                self._on_window_update(stream, frames.read_number(payload))
            elif kind == frames.RST_STREAM:
                self._on_reset(stream, payload)
            elif kind in (frames.SETTINGS, frames.PING, frames.GOAWAY):
                self._on_connection_frame(kind, flags, stream, payload)
            elif kind == frames.PUSH_PROMISE:
                raise ConnectionFault(frames.PROTOCOL_ERROR, "a client pushes nothing")
            else:  # PRIORITY, and kinds that are not known: 5.5
                self._spend(UPDATES)
        except StreamFault as fault:
            self._reset(fault.stream, fault.code)

    def on_data_head(self, stream: int, size: int) -> None:
        if self._unfinished is not None:
            raise ConnectionFault(frames.PROTOCOL_ERROR, "a header block is interrupted")
        check_known(stream, "DATA", frames.MAX_WINDOW if self.is_ending else self.last_number)
        if size:
            self._flood.earn(ANSWERED, PINGS_EACH_FRAME)
        else:
            self._spend(EMPTY)
        self._received_bytes += size
        if self._received_bytes > CONNECTION_WINDOW:
            raise ConnectionFault(frames.FLOW_CONTROL_ERROR, "more was sent than the connection's window")
        if self._received_bytes > CONNECTION_WINDOW // 2:
            self._outgoing.write(frames.window_update(0, self._received_bytes))
            self._received_bytes = 0
        found = self.open.get(stream)
        if found is None:  # we have ended it, and that is on its way
            return
        self._padding_bytes = size
        found.receive_window -= size
        if found.receive_window < 0:
            self._reset(stream, frames.FLOW_CONTROL_ERROR)
        elif found.is_ended_by_peer:
            self._reset(stream, frames.STREAM_CLOSED)

    def on_data(self, stream: int, data: memoryview) -> None:
        found = self.open.get(stream)
        self._padding_bytes -= len(data)
        if found is not None:
            found.handler.on_data(data)

    def on_data_end(self, stream: int, flags: int) -> None:
        padded = self.open.get(stream) if flags & frames.PADDED else None
        if padded is not None:  # no handler knows of padding: its part of the window is given back here
            padded.grant(self._padding_bytes)
        if flags & frames.END_STREAM:
            self._end_by_peer(self.open.get(stream))

    # One kind of frame each.

    def _on_headers(self, flags: int, stream: int, block: bytes) -> None:
        if not stream & 1:
            raise ConnectionFault(frames.PROTOCOL_ERROR, "the number of a client's stream is odd")
        if flags & frames.END_HEADERS:
            self._on_block(stream, flags, block)
        else:
            self._unfinished = stream, flags, bytearray(block)

    def _on_continuation(self, flags: int, payload: bytes) -> None:
        if self._unfinished is None:
            raise ConnectionFault(frames.PROTOCOL_ERROR, "CONTINUATION without HEADERS")
        self._spend(EMPTY)
        stream, first_flags, block = self._unfinished
        block += payload
        if len(block) > BLOCK_LIMIT_BYTES:
            raise ConnectionFault(frames.ENHANCE_YOUR_CALM, "a header block is too large")
        if flags & frames.END_HEADERS:
            self._unfinished = None
            self._on_block(stream, first_flags, bytes(block))

    def _on_block(self, number: int, flags: int, block: bytes) -> None:
        headers = self._blocks.decode(block)
        is_end = bool(flags & frames.END_STREAM)
        if number <= self.last_number:  # trailers, which say nothing in gRPC; or the stream has ended
            found = self.open.get(number)
            if found is not None and (not is_end or found.is_ended_by_peer):
                raise StreamFault(number, frames.PROTOCOL_ERROR)
            self._end_by_peer(found)
            return
        if self.is_ending:
            return  # RFC 9113, 6.8: the client sends it again elsewhere
        self.last_number = number
        if len(self.open) >= STREAMS_LIMIT:
            raise StreamFault(number, frames.REFUSED_STREAM)
        if not are_sound(headers):
            raise StreamFault(number, frames.PROTOCOL_ERROR)
        stream = Stream(number, headers, self._outgoing, self.windows, self.forget)
        stream.receive_window = STREAM_WINDOW
        self.open[number], self._opened_s[number] = stream, time.monotonic()
        stream.handler = self._open_stream(stream)
        if is_end:
            self._end_by_peer(stream)

    def _end_by_peer(self, stream: Stream | None) -> None:
        if stream is not None and not stream.is_closed:
            stream.is_ended_by_peer = True
            stream.handler.on_end()

    def _on_window_update(self, stream: int, size: int) -> None:
        self._spend(UPDATES)
        if not stream:
            if not size:
                raise ConnectionFault(frames.PROTOCOL_ERROR, "a window grows by nothing")
            self.windows.grow(size)
            return
        found = self.open.get(stream)
        if found is None:
            check_known(stream, "WINDOW_UPDATE", frames.MAX_WINDOW if self.is_ending else self.last_number)
            return
        if not size:
            raise StreamFault(stream, frames.PROTOCOL_ERROR)
        found.send_window += size
        if found.send_window > frames.MAX_WINDOW:
            raise StreamFault(stream, frames.FLOW_CONTROL_ERROR)
        found.pump()

    def _on_reset(self, stream: int, payload: bytes) -> None:
        frames.read_number(payload)
        check_known(stream, "RST_STREAM", frames.MAX_WINDOW if self.is_ending else self.last_number)
        found = self.open.get(stream)
        is_flood = found is not None and time.monotonic() < self._opened_s[stream] + SHORT_S
        self._spend(RESETS if is_flood else UPDATES)
        if found is not None:
            self.forget(found)
            found.handler.on_reset()

    def _on_connection_frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if stream:
            raise ConnectionFault(frames.PROTOCOL_ERROR, "a frame of the connection is on a stream")
        if flags & frames.ACK and kind != frames.GOAWAY:
            return
        if kind == frames.PING:
            if len(payload) != 8:
                raise ConnectionFault(frames.FRAME_SIZE_ERROR, "a PING has another size")
            self._spend(ANSWERED)
            is_open = bool(self.open)
            if self._flood.strikes.is_too_much(time.monotonic(), self._outgoing.data_writes, has_calls=is_open):
                raise ConnectionFault(frames.ENHANCE_YOUR_CALM, TOO_MANY_PINGS)
            self._outgoing.write(frames.ping_ack(payload))
        elif kind == frames.SETTINGS:
            self._spend(ANSWERED)
            for key, value in frames.read_settings(payload):
                if key == frames.INITIAL_WINDOW_SIZE:
                    self.windows.change_initial(value, list(self.open.values()))
                elif key == frames.MAX_FRAME_SIZE:
                    self.windows.frame_bytes = value
            self._outgoing.write(frames.SETTINGS_ACK)

    def _reset(self, number: int, code: int) -> None:
        self._spend(RESETS)  # else a client that breaks rules has more requests begun for nothing than one that resets
        found = self.open.get(number)
        if found is None:
            self._outgoing.write(frames.rst_stream(number, code))
        else:
            found.reset(code)
            found.handler.on_reset()

    def _spend(self, kind: str) -> None:
        if not self._flood.spend(kind, time.monotonic()):
            text = TOO_MANY_PINGS if kind == ANSWERED else f"too many frames ({kind})"
            raise ConnectionFault(frames.ENHANCE_YOUR_CALM, text)


def check_known(stream: int, kind: str, last_number: int) -> None:
    """ConnectionFault for a frame on a stream that the client has not opened. What it opens while the connection ends
    is ignored: then any number is known."""
    if not stream & 1 or stream > last_number:
        raise ConnectionFault(frames.PROTOCOL_ERROR, f"{kind} on a stream that was never opened")


def are_sound(headers: Headers) -> bool:
    """Whether the headers of a request are as RFC 9113, 8.2 and 8.3 want them: pseudo headers first and once, names in
    lower case, none that belongs to a connection."""
    seen: set[bytes] = set()
    is_regular = False
    for name, value in headers:
        if name.startswith(b":"):
            if is_regular or name not in _PSEUDO or name in seen:
                return False
            seen.add(name)
            continue
        is_regular = True
        if not name or name in _FORBIDDEN or name != name.lower() or any(each in value for each in b"\0\r\n"):
            return False
    return {b":method", b":scheme", b":path"} <= seen
