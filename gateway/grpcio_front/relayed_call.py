"""One call between a client of grpcio and a gateway: its messages both ways, and how far each side may send."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from mmsup.ipc.rpc import relay_frames
from mmsup.ipc.rpc.header_literals import Headers, read_block

PREFIX_BYTES: Final = 5


class CallLost(Exception):  # noqa: N818 - says what has happened
    """The gateway is gone, or has ended the call without a status."""


class RelayedCall:
    """`write` sends a frame to the gateway. Events of the gateway come by `on_frame`, and leave by `next_event`."""

    def __init__(self, number: int, write: Callable[[bytes], None]) -> None:
        self.number = number
        self._write = write
        self._window = relay_frames.WINDOW_BYTES
        self._events: deque[bytes | Headers] = deque()
        """Messages, and headers: those of the response and the trailers."""
        self._partial = bytearray()
        self._ungranted_bytes = 0
        """Received while messages wait for the client, and not granted again."""
        self._changed = asyncio.Event()
        self.is_over = False
        """The gateway has said its last."""
        self._is_lost = False

    async def send(self, message: bytes) -> None:
        """Send one message of the client, as the gateway takes it."""
        data = memoryview(b"\0" + len(message).to_bytes(4, "big") + message)
        while data and not self.is_over:
            size = min(len(data), self._window, relay_frames.DATA_BYTES)
            if not size:
                await self._wait()
                continue
            self._window -= size
            self._write(relay_frames.frame(relay_frames.DATA, self.number, data[:size]))
            data = data[size:]

    def send_end(self) -> None:
        if not self.is_over:
            self._write(relay_frames.frame(relay_frames.END, self.number))

    async def next_event(self) -> bytes | Headers:
        """The next message, or headers: CallLost after the last one that came."""
        while not self._events:
            if self._is_lost:
                raise CallLost
            await self._wait()
        event = self._events.popleft()
        if not self._events and self._ungranted_bytes:
            self._grant(self._ungranted_bytes)
            self._ungranted_bytes = 0
        return event

    def on_frame(self, kind: int, payload: bytes) -> None:
        """`kind`: one that a gateway sends for a call."""
        if kind == relay_frames.DATA:
            self._on_data(payload)
        elif kind == relay_frames.GRANT:
            self._window += relay_frames.granted_bytes(payload)
        elif kind in (relay_frames.HEADERS, relay_frames.TRAILERS):
            self._events.append(read_block(payload))
            self.is_over = kind == relay_frames.TRAILERS
        else:
            self.lose()
        self._changed.set()

    def lose(self) -> None:
        self.is_over = self._is_lost = True
        self._changed.set()

    def cancel(self) -> None:
        """The client is gone, or needs no more."""
        if not self.is_over:
            self.is_over = True
            self._write(relay_frames.frame(relay_frames.CANCEL, self.number))
        self._changed.set()

    def _on_data(self, payload: bytes) -> None:
        self._partial += payload
        while len(self._partial) >= PREFIX_BYTES:
            size = PREFIX_BYTES + int.from_bytes(self._partial[1:PREFIX_BYTES], "big")
            if len(self._partial) < size:
                break
            self._events.append(bytes(self._partial[PREFIX_BYTES:size]))
            del self._partial[:size]
        if self._events:
            self._ungranted_bytes += len(payload)
        else:  # a message has to come whole before anybody can take it
            self._grant(len(payload))

    def _grant(self, size: int) -> None:
        if not self.is_over:
            self._write(relay_frames.grant(self.number, size))

    async def _wait(self) -> None:
        """Until something has happened. Two tasks may wait: who sends, and who takes events."""
        self._changed.clear()
        await self._changed.wait()
