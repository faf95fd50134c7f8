"""One HTTP/2 connection of a client, without TLS: from its first byte to its last.

What is sent within one turn of the event loop leaves in one write. The client's windows bound what waits to be sent; a
client that does not read is not read from. Who breaks a rule of the protocol is told which in a GOAWAY, and loses the
connection; nobody else notices.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol, cast

from mmsup.gateway.http2 import frames
from mmsup.gateway.http2.frame_reader import FRAME_BYTES, FrameReader
from mmsup.gateway.http2.frames import ConnectionFault
from mmsup.gateway.http2.header_blocks import LIST_LIMIT_BYTES
from mmsup.gateway.http2.keepalive import KeepaliveTimer
from mmsup.gateway.http2.outgoing import WRITE_HIGH_BYTES, Outgoing
from mmsup.gateway.http2.stream import Stream, StreamHandler
from mmsup.gateway.http2.streams import CONNECTION_WINDOW, STREAM_WINDOW, STREAMS_LIMIT, Streams
from mmsup.ipc.rpc.keepalive import DEFAULT_KEEPALIVE, RpcKeepalive

SEND_LIMIT_S: Final = 60.0
"""How long data of a stream may wait for the client, which grants no window or does not read."""
PREFACE_LIMIT_S: Final = 30.0
"""How long a connection may take for its first 24 bytes."""
GOAWAY_S: Final = 0.5
"""What a client has to close a retired connection itself. A call that it sends before it has read the GOAWAY it sends
again elsewhere; if the bytes met a closed socket, the call would fail."""
LINGER_S: Final = 2.0
"""For the last words to a client whose connection ends."""
_OPENING: Final = frames.settings(
    {
        frames.MAX_CONCURRENT_STREAMS: STREAMS_LIMIT,
        frames.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
        frames.MAX_FRAME_SIZE: FRAME_BYTES,
        frames.MAX_HEADER_LIST_SIZE: LIST_LIMIT_BYTES,
    }
) + frames.window_update(0, CONNECTION_WINDOW - frames.DEFAULT_WINDOW)


class Http2Owner(Protocol):
    """What a connection needs of its listener."""

    def admit(self, connection: Http2Connection, transport: asyncio.BaseTransport) -> bool: ...

    def remove(self, connection: Http2Connection) -> None: ...


class Http2Connection(asyncio.Protocol):
    """`open_stream` makes the handler of each stream, and raises nothing."""

    def __init__(
        self,
        owner: Http2Owner,
        open_stream: Callable[[Stream], StreamHandler],
        options: RpcKeepalive = DEFAULT_KEEPALIVE,
    ) -> None:
        self._owner = owner
        self._open_stream = open_stream
        self._loop = asyncio.get_running_loop()
        self._reader = FrameReader()
        self._transport: asyncio.Transport | None = None
        self._outgoing: Outgoing | None = None
        self._streams: Streams | None = None
        self._reads_on = False
        """Whether frames that have arrived are read in another turn of the loop."""
        self._keepalive = KeepaliveTimer(options)
        self._made_s = self._loop.time()
        self._goaway_s = 0.0
        """When it was retired."""
        self.uses = 0
        """Reads; for ConnectionLimit."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = made = cast("asyncio.Transport", transport)
        if not self._owner.admit(self, transport):
            made.abort()
            return
        made.set_write_buffer_limits(WRITE_HIGH_BYTES)
        self._outgoing = Outgoing(self._loop, made)
        self._streams = Streams(self._outgoing, self._open_stream, self._keepalive.options)
        self._keepalive.start(self, self._outgoing)
        self._outgoing.on_room = self._streams.windows.pump
        self._outgoing.write(_OPENING)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._owner.remove(self)
        self._keepalive.cancel()
        streams, self._streams = self._streams, None
        if streams is not None:
            for stream in list(streams.open.values()):
                streams.forget(stream)
                stream.handler.on_reset()

    def data_received(self, data: bytes) -> None:
        streams = self._streams
        if streams is None:
            return
        self.uses += 1
        try:
            self._reader.feed(data, streams)
        except ConnectionFault as fault:
            self._end(fault.code, fault.text)
            return
        if self._reader.has_more and not self._reads_on and self._transport is not None:
            self._reads_on = True
            self._transport.pause_reading()
            self._loop.call_soon(self._read_on)

    def _read_on(self) -> None:
        self._reads_on = False
        self.data_received(b"")
        is_paused = self._outgoing is None or self._outgoing.is_paused
        if not self._reads_on and not is_paused and self._transport is not None:
            self._transport.resume_reading()

    def pause_writing(self) -> None:
        if self._transport is not None and self._outgoing is not None:
            self._transport.pause_reading()
            self._outgoing.pause()

    def resume_writing(self) -> None:
        if self._transport is not None and self._outgoing is not None:
            self._transport.resume_reading()
            self._outgoing.resume()

    @property
    def is_evictable(self) -> bool:
        return self._streams is None or not self._streams.open

    def retire(self) -> None:
        """Open no new streams; the connection ends with its last one."""
        streams, outgoing = self._streams, self._outgoing
        if streams is None or outgoing is None:
            return
        if not streams.is_ending:
            streams.is_ending = True
            outgoing.write(frames.goaway(streams.last_number, frames.NO_ERROR))
            self._goaway_s = self._loop.time()
            self._loop.call_later(GOAWAY_S, self.retire)
        if not streams.open and self._may_close():
            self._close()

    def end_idle_streams(self) -> None:
        """Of a connection that is retired: streams that have no end of their own end when nothing goes on in them."""
        for stream in list(self._streams.open.values()) if self._streams is not None else ():
            stream.handler.on_retire()
        self.retire()

    def on_tick(self, now_s: float) -> None:
        """Called every few seconds: end what takes too long."""
        streams = self._streams
        if streams is None:
            return
        for stream in list(streams.open.values()):
            if now_s > streams.windows.waiting.get(stream, now_s) + SEND_LIMIT_S:
                stream.reset(frames.CANCEL)
                stream.handler.on_reset()
            else:
                stream.handler.on_tick(now_s)
        if not self._reader.has_begun and self._loop.time() > self._made_s + PREFACE_LIMIT_S:
            self.abort()
        elif streams.is_ending and not streams.open and self._may_close():
            self._close()

    def _may_close(self) -> bool:
        return not self._reader.has_begun or self._loop.time() >= self._goaway_s + GOAWAY_S

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _end(self, code: int, text: str) -> None:
        """The client has broken a rule."""
        streams, self._streams = self._streams, None
        assert streams is not None, "a connection ends before it has begun"
        assert self._outgoing is not None, "a connection ends before it has begun"
        self._outgoing.write(frames.goaway(streams.last_number, code, text))
        for stream in list(streams.open.values()):
            streams.forget(stream)
            stream.handler.on_reset()
        self._close()

    def _close(self) -> None:
        """Send what there is to send, and close; a client that does not take it is cut off."""
        if self._outgoing is not None and self._transport is not None:
            self._outgoing.flush()
            self._transport.close()
            self._loop.call_later(LINGER_S, self.abort)
