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

from mmsup.ipc.transport.control_channel import Closed, Seqpacket, close_all

OUTBOX_LIMIT: Final = 20_000
"""Messages that may wait for a reader. One that is so far behind is as good as gone."""
READS_IN_A_TURN: Final = 64
"""A peer that talks without end gets its share of the loop, and no more."""

Hear = Callable[[bytes, list[int]], None]


class Peer:
    """One end, with a queue before it. `lost` is called once, from the loop, when nobody is there any more."""

    def __init__(self, channel: Seqpacket, hear: Hear, lost: Callable[[], None]) -> None:
        self._channel = channel
        self._hear = hear
        self._lost = lost
        self._outbox: deque[tuple[bytes, list[int]]] = deque()
        self._over = False
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(channel.fileno(), self._read)

    def say(self, data: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send now, or as soon as there is room. To one that is gone: nothing happens, `lost` has said so."""
        if self._over:
            return
        try:
            if not self._outbox and self._channel.send(data, descriptors):
                return
        except Closed:
            self._end()
            return
        if not self._outbox:
            self._loop.add_writer(self._channel.fileno(), self._flush)
        self._outbox.append((data, [os.dup(each) for each in descriptors]))
        if len(self._outbox) > OUTBOX_LIMIT:
            self._end()

    def close(self) -> None:
        """Let go of the channel; nobody is told."""
        if not self._over:
            self._over = True
            self._loop.remove_reader(self._channel.fileno())
            self._loop.remove_writer(self._channel.fileno())
        for _, descriptors in self._outbox:
            close_all(descriptors)
        self._outbox.clear()
        self._channel.close()

    def drain(self) -> None:
        """Hear what had been said before the far end died."""
        if not self._over:
            self._read()

    def _flush(self) -> None:
        try:
            while self._outbox:
                data, descriptors = self._outbox[0]
                if not self._channel.send(data, descriptors):
                    return
                close_all(descriptors)
                self._outbox.popleft()
        except Closed:
            self._end()
            return
        self._loop.remove_writer(self._channel.fileno())

    def _read(self) -> None:
        try:
            for _ in range(READS_IN_A_TURN):
                received = None if self._over else self._channel.receive()
                if received is None:
                    return
                self._hear(*received)
        except Closed:
            self._end()

    def _end(self) -> None:
        if self._over:
            return
        self._over = True
        self._loop.remove_reader(self._channel.fileno())
        self._loop.remove_writer(self._channel.fileno())
        self._loop.call_soon(self._lost)
