"""How far a worker may be ahead of the client that reads its stream of responses. Pure.

The worker keeps a window, and makes no further part while it is full; the gateway, which does not trust it, keeps the
same one and refuses what goes beyond. So a client that reads slowly, or not at all, costs each of them at most
WINDOW_PARTS parts, and WINDOW_BYTES bytes and one part, whatever the model would produce.
"""

from __future__ import annotations

from collections import deque
from typing import Final

WINDOW_PARTS: Final = 16
WINDOW_BYTES: Final = 64 << 10
"""Of parts that travel in the message. A part in shared memory is the only one until it was taken."""


class StreamWindow:
    def __init__(self) -> None:
        self.sent = 0
        """Parts so far."""
        self._sizes: deque[int] = deque()
        """Of the parts that the client has not taken."""
        self._bytes = 0

    @property
    def taken(self) -> int:
        return self.sent - len(self._sizes)

    @property
    def has_room(self) -> bool:
        return len(self._sizes) < WINDOW_PARTS and self._bytes < WINDOW_BYTES

    def send(self, size: int, *, in_buffer: bool) -> None:
        """One more part, of `size` bytes; `in_buffer`: in shared memory."""
        self.sent += 1
        counted = WINDOW_BYTES if in_buffer else size
        self._sizes.append(counted)
        self._bytes += counted

    def take(self, taken: int) -> int:
        """The client has taken so many parts in all; what was never sent is not counted. Returns the bytes of these."""
        before = self._bytes
        while self._sizes and self.taken < taken:
            self._bytes -= self._sizes.popleft()
        return before - self._bytes
