"""Message boundary: whether the bytes given to an HTTP parser end where a message ends. Pure.

Checked before the bytes that follow go to another reader, since a parser that holds half a head or half a body must get
the rest. Nothing is parsed here. That a message is complete is known from the parser (its body is complete); that the
parser holds nothing of a next one follows from one of two facts:

- The last bytes are a blank line. The parser could hold only part of a head; but a head ends at its blank line, so it
  would have been reported as a message, or refused. (All parsers skip blank lines before a head.)
- There was one message with a length, and the bytes are exactly its head and that many more.
"""

from __future__ import annotations

from typing import Final

BLANK: Final = b"\r\n\r\n"
_HEAD_LIMIT_BYTES: Final = 1 << 17


class MessageBoundary:
    """For one parser, since it was last known to be between two messages."""

    def __init__(self) -> None:
        self._unreported = bytearray()
        self._size = 0
        self._messages = 0
        self._end: int | None = None
        self._tail = BLANK

    def on_bytes(self, data: bytes, lengths: list[int | None]) -> None:
        """The parser has received `data`; `lengths`: the announced body length of each message that it reported."""
        if not self._messages and len(self._unreported) <= _HEAD_LIMIT_BYTES:
            self._unreported += data
        self._size += len(data)
        self._tail = (self._tail + data[-4:])[-4:]
        self._messages += len(lengths)
        if lengths:
            at = self._unreported.find(BLANK)
            known = self._messages == len(lengths) == 1 and at >= 0 and lengths[0] is not None
            self._end = at + len(BLANK) + (lengths[0] or 0) if known else None
            self._unreported = bytearray()

    def is_reached(self, *, complete: bool) -> bool:
        """Whether the bytes end at a boundary; `complete`: the last message has all of its body."""
        return complete and (self._tail == BLANK or (self._messages == 1 and self._size == self._end))
