"""Messages in the body of a stream: one byte of compression, four of length, the message. Pure.

https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md, "Length-Prefixed-Message".
"""

from __future__ import annotations

import struct
import zlib
from typing import Final, Protocol

from mmsup.ipc.errors import CallerError

SLICE_BYTES: Final = 1 << 18
"""Of a compressed message, what is inflated at one time: 0.4 ms."""
PREFIX_BYTES: Final = 5
_PREFIX: Final = struct.Struct(">BI")
ENCODINGS: Final = {b"identity": 0, b"gzip": 16 + zlib.MAX_WBITS, b"deflate": zlib.MAX_WBITS}
"""Of messages whose first byte is 1; to zlib's window bits."""
ACCEPTED: Final = b"identity, deflate, gzip"


def prefix(size: int) -> bytes:
    """Before a message of `size` bytes that is not compressed."""
    return _PREFIX.pack(0, size)


class Inflater(Protocol):
    """As zlib makes them."""

    @property
    def eof(self) -> bool: ...

    @property
    def unconsumed_tail(self) -> bytes: ...

    def decompress(self, data: bytearray, /, max_length: int) -> bytes: ...


class MessageReader:
    """Takes messages out of a body that comes in parts. `limit`: bytes of one message, also when it is inflated.

    A compressed message may become a thousand times as large, so it is inflated in slices: while `is_inflating`, there
    is no `feed`, and `inflate` is to be called until it returns the message.
    """

    # fmt: off
    __slots__ = (
        "_head", "_inflated", "_inflated_to", "_inflater", "_is_compressed", "_limit", "_message", "_window_bits",
        "size",
    )
    # fmt: on

    def __init__(self, limit: int, encoding: bytes = b"identity") -> None:
        """KeyError for an encoding that is not known."""
        self._limit = limit
        self._window_bits = ENCODINGS[encoding]
        self._head = bytearray()
        self._message = bytearray()
        self._is_compressed = False
        self._inflater: Inflater | None = None
        self._inflated = bytearray()
        self._inflated_to = 0
        """Bytes of the compressed message that have been read."""
        self.size = -1
        """Of the message that is being received; -1 before its length is known."""

    @property
    def is_between_messages(self) -> bool:
        return self.size < 0 and not self._head and self._inflater is None

    @property
    def is_inflating(self) -> bool:
        return self._inflater is not None

    @property
    def held_bytes(self) -> int:
        """Of the message that is being received, what has arrived; to announce more costs nothing."""
        return len(self._message) + len(self._inflated)

    @property
    def missing_bytes(self) -> int:
        """Of the message that is being received, as far as that is known."""
        return self.size - len(self._message) if self.size >= 0 else 0

    def feed(self, data: memoryview) -> tuple[bytes | None, memoryview]:
        """The next message if it is complete now, and the rest of the data; CallerError for one that is too large."""
        if self.size < 0:
            size = PREFIX_BYTES - len(self._head)
            self._head += data[:size]
            data = data[size:]
            if len(self._head) < PREFIX_BYTES:
                return None, data
            flag, self.size = _PREFIX.unpack(self._head)
            if flag > 1:
                raise CallerError("bad_request", "a message's first byte says neither compressed nor not")
            self._is_compressed = flag == 1
            self._head.clear()
            if self.size > self._limit:
                raise self._too_large(self.size)
        missing = self.size - len(self._message)
        if not self._message and len(data) >= missing and not self._is_compressed:  # in one piece: copied once
            message = bytes(data[:missing])
        else:
            self._message += data[:missing]
            if len(self._message) < self.size:
                return None, data[missing:]
            if self._is_compressed:
                if not self._window_bits:
                    raise CallerError("bad_request", "a message is compressed, but no grpc-encoding was named")
                self._inflater = zlib.decompressobj(self._window_bits)
                return self.inflate(), data[missing:]
            message = bytes(self._message)
            self._message = bytearray()
        self.size = -1
        return message, data[missing:]

    def inflate(self) -> bytes | None:
        """One slice more; the message if that was the last. CallerError for one that is broken or too large."""
        inflater = self._inflater
        assert inflater is not None, "no message is being inflated"
        part = self._message[self._inflated_to : self._inflated_to + SLICE_BYTES]
        try:
            made = inflater.decompress(part, SLICE_BYTES)
        except zlib.error:
            raise CallerError("bad_request", "a message cannot be decompressed") from None
        self._inflated_to += len(part) - len(inflater.unconsumed_tail)
        self._inflated += made
        if len(self._inflated) > self._limit:
            raise self._too_large(len(self._inflated))
        if not inflater.eof:
            if not part and not made:
                raise CallerError("bad_request", "a compressed message is cut off")
            return None
        message = bytes(self._inflated)
        self._inflated, self._message = bytearray(), bytearray()
        self._inflater, self._inflated_to, self.size = None, 0, -1
        return message

    def clear(self) -> None:
        """No more is received: free what is held."""
        self._message, self._inflated, self._inflater = bytearray(), bytearray(), None

    def _too_large(self, size: int) -> CallerError:
        text = f"a message of {size} bytes exceeds the maximum allowed {self._limit} bytes"
        return CallerError("too_large", f"{text}: the server's operator may raise --http-max-input-size")
