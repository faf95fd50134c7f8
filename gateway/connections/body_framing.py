"""How the bytes of one connection are cut for the parser, so that it meets each head and each body alone. Pure.

The parser forgets a good request if something malformed follows in the same bytes. And it takes microseconds for each
chunk, however small: a body of chunks is fed in slices, and refused once its framing outweighs its content.
"""

from __future__ import annotations

from typing import Final

from mmsup.gateway.connections.message_boundary import BLANK

SLICE_BYTES: Final = 1 << 14
"""Of a body in chunks, between two looks at what its framing costs."""
FRAMING_BYTES: Final = 1 << 16
"""Framing that any body in chunks may have: some 13,000 chunks."""
CONTENT_PER_FRAMING: Final = 8
"""Beyond that, chunks have 40 bytes or more on average."""


class BodyFraming:
    """The body that is being received; one per connection."""

    __slots__ = ("_received", "left")

    def __init__(self) -> None:
        self.left: int | None = 0
        """Bytes of the body to come; None: it is in chunks, and its end is for the parser to find."""
        self._received = 0

    def start(self, length: int | None) -> None:
        """A head has been read; `length` None: in chunks."""
        self.left, self._received = length, 0

    def next_size(self, data: bytes) -> int:
        """How many of these bytes to give to the parser at once."""
        if self.left is None:
            return min(len(data), SLICE_BYTES)
        if self.left:
            return min(len(data), self.left)
        end = data.find(BLANK) + len(BLANK)
        return end if end >= len(BLANK) else len(data)

    def on_bytes(self, size: int) -> None:
        """The parser has got so many bytes of the body."""
        self._received += size
        if self.left:
            self.left -= size

    def is_too_fine(self, content: int) -> bool:
        """Whether the framing outweighs the `content` bytes that the parser found in it."""
        return self.left is None and self._received - content > FRAMING_BYTES + content // CONTENT_PER_FRAMING
