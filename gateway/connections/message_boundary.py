"""Whether the bytes that one parser was given end where a message ends. Pure.

Asked before bytes that follow go to another reader: a parser that holds half a head, or half a body, must get the rest.
Nothing is parsed here. That a message has ended is the parser's word (its body is complete); that nothing of a next one
was given to it follows from one of two facts:

- The last bytes are a blank line. Of the next message it could hold only part of a head; but a head is over at its
  blank line, so it would have been told as a message, or refused. (Blank lines before a head are skipped by everyone.)
- It was one message with a length, and exactly its head and as many bytes were given.
"""

from __future__ import annotations

from typing import Final

BLANK: Final = b"\r\n\r\n"
_HEAD_LIMIT_BYTES: Final = 1 << 17


class MessageBoundary:
    """Of one connection's parser, since it was last known to be between two messages."""

    def __init__(self) -> None:
        self._begun = bytearray()
        self._fed = 0
        self._messages = 0
        self._end: int | None = None
        self._tail = BLANK

    def on_bytes(self, data: bytes, lengths: list[int | None]) -> None:
        """These bytes were given; `lengths`: of the body of each message that the parser told of, if it has one."""
        if not self._messages and len(self._begun) <= _HEAD_LIMIT_BYTES:
            self._begun += data
        self._fed += len(data)
        self._tail = (self._tail + data[-4:])[-4:]
        self._messages += len(lengths)
        if lengths:
            at = self._begun.find(BLANK)
            known = self._messages == len(lengths) == 1 and at >= 0 and lengths[0] is not None
            self._end = at + len(BLANK) + (lengths[0] or 0) if known else None
            self._begun = bytearray()

    def is_reached(self, *, complete: bool) -> bool:
        """Whether a next message may go elsewhere; `complete`: the last message has all of its body."""
        return complete and (self._tail == BLANK or (self._messages == 1 and self._fed == self._end))
