"""A control channel on an asyncio event loop: a send queue, and a callback for each received message. Never blocks.

The MessageChannel owns its control channel. Descriptors given to `send` stay the caller's (they are duplicated if the
message has to be queued); received descriptors belong to the `on_message` callback.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from mmsup.ipc.transport.control_channel import ChannelClosed, ControlChannel, DescriptorsLost, close_fds

MAX_QUEUED: Final = 20_000
"""Messages in the send queue. A reader that is so far behind is treated as gone."""
MAX_READS: Final = 64
"""Messages received per loop iteration, so that one sender cannot starve the others."""


class MessageChannel:
    """One end. `on_closed` is called once, from the loop, when the other side has closed.

    `on_error` gets a message whose descriptors were lost because the descriptor table is full; without it the error
    goes to the exception handler of the loop.
    """

    def __init__(
        self,
        channel: ControlChannel,
        on_message: Callable[[bytes, list[int]], None],
        on_closed: Callable[[], None],
        on_error: Callable[[DescriptorsLost], None] | None = None,
    ) -> None:
        self._channel = channel
        self._on_message = on_message
        self._on_closed = on_closed
        self._on_error = on_error
        self._outbox: deque[tuple[bytes, list[int]]] = deque()
        self._is_closed = False
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(channel.fileno(), self._read)

    def send(self, data: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send now, or as soon as there is room. Ignored if the other side has closed."""
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
        """Close the channel, without calling `on_closed`."""
        if not self._is_closed:
            self._is_closed = True
            self._loop.remove_reader(self._channel.fileno())
            self._loop.remove_writer(self._channel.fileno())
        for _, descriptors in self._outbox:
            close_fds(descriptors)
        self._outbox.clear()
        self._channel.close()

    def drain(self) -> None:
        """Receive what was sent before the other side closed."""
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
        for _ in range(MAX_READS):
            try:
                received = None if self._is_closed else self._channel.receive()
            except ChannelClosed:
                self._fail()
                return
            except DescriptorsLost as error:
                if self._on_error is None:
                    raise
                self._on_error(error)
                return
            if received is None:
                return
            self._on_message(*received)

    def _fail(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._loop.remove_reader(self._channel.fileno())
        self._loop.remove_writer(self._channel.fileno())
        self._loop.call_soon(self._on_closed)
