"""One connection of the gRPC front process to this gateway, with the calls that are open on it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol, cast

from mmsup.gateway.http2.connection import SEND_LIMIT_S
from mmsup.gateway.http2.stream import StreamHandler
from mmsup.gateway.rpc.calls.call_stream import CallStream
from mmsup.gateway.rpc.calls.peer import RpcPeer
from mmsup.gateway.rpc.relay.relayed_stream import RelayedStream
from mmsup.ipc.rpc import relay_frames
from mmsup.ipc.rpc.header_literals import read_block
from mmsup.ipc.rpc.relay_frames import BrokenRelay, RelayReader

WRITE_HIGH_BYTES: Final = 1 << 21


class OpenRelayedCall(Protocol):
    def __call__(self, stream: CallStream, *, peer: RpcPeer) -> StreamHandler: ...


class RelayConnection(asyncio.Protocol):
    def __init__(self, open_stream: OpenRelayedCall, on_closed: Callable[[RelayConnection], None]) -> None:
        self._open_stream = open_stream
        self._on_closed = on_closed
        self._reader = RelayReader()
        self._transport: asyncio.Transport | None = None
        self._streams: dict[int, RelayedStream] = {}
        self.is_paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(WRITE_HIGH_BYTES)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._transport = None
        for stream in list(self._streams.values()):
            self._cancel(stream)
        self._on_closed(self)

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.feed(data, self._on_frame)
        except (BrokenRelay, ValueError):
            self.abort()

    def pause_writing(self) -> None:
        self.is_paused = True
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        self.is_paused = False
        if self._transport is not None:
            self._transport.resume_reading()
        for stream in list(self._streams.values()):
            stream.pump()

    def write(self, frame: bytes) -> None:
        if self._transport is not None:
            self._transport.write(frame)

    def forget(self, stream: RelayedStream) -> None:
        self._streams.pop(stream.number, None)

    def retire(self) -> None:
        """The front opens no more calls here, and closes the connection after the last one."""
        self.write(relay_frames.frame(relay_frames.RETIRE, 0))

    def end_idle_streams(self) -> None:
        for stream in list(self._streams.values()):
            stream.handler.on_retire()

    def on_tick(self, now_s: float) -> None:
        for stream in list(self._streams.values()):
            if stream.waits_since_s and now_s > stream.waits_since_s + SEND_LIMIT_S:
                stream.reset()
                stream.handler.on_reset()
            else:
                stream.handler.on_tick(now_s)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _on_frame(self, kind: int, call: int, payload: bytes) -> None:
        if kind == relay_frames.OPEN:
            self._open(call, payload)
            return
        stream = self._streams.get(call)
        if stream is None:  # it has ended, and that is on its way
            return
        if kind == relay_frames.DATA:
            stream.handler.on_data(memoryview(payload))
        elif kind == relay_frames.END:
            stream.is_ended_by_peer = True
            stream.handler.on_end()
        elif kind == relay_frames.GRANT:
            stream.on_granted(relay_frames.granted_bytes(payload))
        elif kind == relay_frames.CANCEL:
            self._cancel(stream)
        else:
            raise BrokenRelay("a frame of another kind")

    def _open(self, number: int, payload: bytes) -> None:
        if number in self._streams or not payload:
            raise BrokenRelay("a call is opened twice, or without headers")
        stream = self._streams[number] = RelayedStream(number, read_block(payload[1:]), self)
        stream.handler = self._open_stream(stream, peer=RpcPeer(payload[0] == 1))

    def _cancel(self, stream: RelayedStream) -> None:
        if not stream.is_closed:
            stream.close()
            stream.handler.on_reset()
