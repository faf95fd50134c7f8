"""A control channel on the loop: messages out in their order, messages in as calls, never a wait.

Who owns what: the Peer owns its channel. Descriptors given to `say` stay the caller's (they are duplicated where the
message must wait for room), descriptors that come with a message are the hearer's.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from mmsup.ipc.transport.control_channel import ChannelClosed, ControlChannel, close_fds

MAX_QUEUED: Final = 20_000
"""Messages that may wait for a reader. One that is so far behind is as good as gone."""
MAX_READS: Final = 64
"""A peer that talks without end gets its share of the loop, and no more."""

OnMessage = Callable[[bytes, list[int]], None]


class MessageChannel:
    """One end, with a queue before it. `lost` is called once, from the loop, when nobody is there any more."""

    def __init__(self, channel: ControlChannel, hear: OnMessage, lost: Callable[[], None]) -> None:
        self._channel = channel
        self._on_message = hear
        self._on_closed = lost
        self._outbox: deque[tuple[bytes, list[int]]] = deque()
        self._is_closed = False
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(channel.fileno(), self._read)

    def send(self, data: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send now, or as soon as there is room. To one that is gone: nothing happens, `lost` has said so."""
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
        """Let go of the channel; nobody is told."""
        if not self._is_closed:
            self._is_closed = True
            self._loop.remove_reader(self._channel.fileno())
            self._loop.remove_writer(self._channel.fileno())
        for _, descriptors in self._outbox:
            close_fds(descriptors)
        self._outbox.clear()
        self._channel.close()

    def drain(self) -> None:
        """Hear what had been said before the far end died."""
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
