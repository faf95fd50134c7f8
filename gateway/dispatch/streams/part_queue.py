"""The parts of one stream that have come from its worker and wait for their reader. Bounded by the stream's window.

The reader takes one at a time. What it took is told to the worker in credits: not one for each part, but before half of
the window is used up.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from mmsup.gateway.protocol.inference_job import InferenceResult
from mmsup.ipc.messages.data import ResponsePart
from mmsup.ipc.messages.stream_window import WINDOW_BYTES, WINDOW_PARTS, StreamWindow

OWED_PARTS: Final = WINDOW_PARTS // 2
OWED_BYTES: Final = WINDOW_BYTES // 2
E_ = TypeVar("E_")
"""What may end a stream."""


class PartQueue(Generic[E_]):
    """Made when the first part comes."""

    def __init__(self, send_credit: Callable[[int], None]) -> None:
        """`send_credit` tells the worker how many parts were taken in all."""
        self._send_credit = send_credit
        self._window = StreamWindow()
        self._waiting: deque[InferenceResult | ResponsePart] = deque()
        """A ResponsePart without outputs asks for a larger buffer."""
        self.end: E_ | None = None
        self._taken = 0
        self._owed_parts = self._owed_bytes = 0
        self._reader: asyncio.Future[None] | None = None

    def count(self, part: ResponsePart) -> str:
        """What is wrong with the next part, or an empty text."""
        if part.sequence != self._window.sent:
            return f"part {part.sequence} of a stream comes as number {self._window.sent}"
        if not self._window.has_room:
            return "it sends more parts of a stream than its reader has taken"
        if not part.needed_bytes:
            inline = [each for each in part.locations if not isinstance(each, tuple)]
            self._window.send(sum(map(len, inline)), in_buffer=len(inline) < len(part.locations))
        return ""

    def put(self, part: InferenceResult | ResponsePart) -> None:
        self._waiting.append(part)
        self._wake()

    def on_end(self, event: E_) -> None:
        """Nothing comes any more; what has come can still be read."""
        self.end = event
        self._wake()

    async def next(self) -> InferenceResult | ResponsePart | E_:
        """The next part, or what ended the stream."""
        while not self._waiting:
            if self.end is not None:
                return self.end
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        return self._waiting.popleft()

    def take(self) -> None:
        """The reader is done with the last part that `next` gave."""
        self._taken += 1
        self._owed_parts += 1
        self._owed_bytes += self._window.take(self._taken)
        if self.end is None and (self._owed_parts >= OWED_PARTS or self._owed_bytes >= OWED_BYTES):
            self._owed_parts = self._owed_bytes = 0
            self._send_credit(self._taken)

    def _wake(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None and not reader.done():
            reader.set_result(None)
