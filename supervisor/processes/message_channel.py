"""A control channel on the event loop: sends in order without waiting, and calls back for each received message.

A MessageChannel owns its control channel. Descriptors passed to `send` remain the caller's (they are duplicated if the
message has to wait); received descriptors belong to `on_message`.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from mmsup.ipc.transport.control_channel import ChannelClosed, ControlChannel, close_fds

MAX_QUEUED: Final = 20_000
"""Messages that may wait for a reader; beyond it the channel counts as closed."""
MAX_READS: Final = 64
"""Messages received in one loop iteration, so that no peer can occupy the loop."""

OnMessage = Callable[[bytes, list[int]], None]


class MessageChannel:
    def __init__(self, channel: ControlChannel, on_message: OnMessage, on_closed: Callable[[], None]) -> None:
        """`on_closed` is called once, from the loop, when the far end is closed or too far behind."""
        self._channel = channel
        self._on_message = on_message
        self._on_closed = on_closed
        self._outbox: deque[tuple[bytes, list[int]]] = deque()
        self._is_closed = False
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(channel.fileno(), self._read)

    def send(self, data: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send now, or as soon as there is room. Does nothing if the far end is closed."""
        if self._is_closed:
            return
        try:
            if not self._outbox and self._channel.send(data, descriptors):
                return
        except ChannelClosed:
            self._fail()
            return
        if not self._outbox:
            self._loop.add_writer(self._channel.fileno(), self._flush)
        self._outbox.append((data, [os.dup(each) for each in descriptors]))
        if len(self._outbox) > MAX_QUEUED:
            self._fail()

    def close(self) -> None:
        """Close the channel; `on_closed` is not called."""
        if not self._is_closed:
            self._is_closed = True
            self._loop.remove_reader(self._channel.fileno())
            self._loop.remove_writer(self._channel.fileno())
        for _, descriptors in self._outbox:
            close_fds(descriptors)
        self._outbox.clear()
        self._channel.close()

    def drain(self) -> None:
        """Receive what the far end sent before it died."""
        if not self._is_closed:
            self._read()

    def _flush(self) -> None:
        try:
            while self._outbox:
                data, descriptors = self._outbox[0]
                if not self._channel.send(data, descriptors):
                    return
                close_fds(descriptors)
                self._outbox.popleft()
        except ChannelClosed:
            self._fail()
            return
        self._loop.remove_writer(self._channel.fileno())

    def _read(self) -> None:
        try:
            for _ in range(MAX_READS):
                received = None if self._is_closed else self._channel.receive()
                if received is None:
                    return
                self._on_message(*received)
        except ChannelClosed:
            self._fail()

    def _fail(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._loop.remove_reader(self._channel.fileno())
        self._loop.remove_writer(self._channel.fileno())
        self._loop.call_soon(self._on_closed)
