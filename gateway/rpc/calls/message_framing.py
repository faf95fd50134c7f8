"""Messages in the body of a stream: one byte of compression, four of length, the message. Pure.

https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md, "Length-Prefixed-Message".
"""

from __future__ import annotations

import struct
import zlib
from typing import Final

from mmsup.ipc.errors import CallerError

PREFIX_BYTES: Final = 5
_PREFIX: Final = struct.Struct(">BI")
ENCODINGS: Final = {b"identity": 0, b"gzip": 16 + zlib.MAX_WBITS, b"deflate": zlib.MAX_WBITS}
"""Of messages whose first byte is 1; to zlib's window bits."""
ACCEPTED: Final = b"identity, deflate, gzip"


def prefix(size: int) -> bytes:
    """Before a message of `size` bytes that is not compressed."""
    return _PREFIX.pack(0, size)


class MessageReader:
    """Takes messages out of a body that comes in parts. `limit`: bytes of one message, also when it is inflated."""

    __slots__ = ("_head", "_is_compressed", "_limit", "_message", "_window_bits", "size")

    def __init__(self, limit: int, encoding: bytes = b"identity") -> None:
        """KeyError for an encoding that is not known."""
        self._limit = limit
        self._window_bits = ENCODINGS[encoding]
        self._head = bytearray()
        self._message = bytearray()
        self._is_compressed = False
        self.size = -1
        """Of the message that is being received; -1 before its length is known."""

    @property
    def is_between_messages(self) -> bool:
        return self.size < 0 and not self._head

    @property
    def held_bytes(self) -> int:
        """Of the message that is being received, what has arrived; to announce more costs nothing."""
        return len(self._message)

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
            message = self._inflated() if self._is_compressed else bytes(self._message)
            self._message = bytearray()
        self.size = -1
        return message, data[missing:]

    def _inflated(self) -> bytes:
        if not self._window_bits:
            raise CallerError("bad_request", "a message is compressed, but no grpc-encoding was named")
        try:
            inflater = zlib.decompressobj(self._window_bits)
            made = inflater.decompress(self._message, self._limit + 1)
        except zlib.error:
            raise CallerError("bad_request", "a message cannot be decompressed") from None
        if len(made) > self._limit:
            raise self._too_large(len(made))
        if not inflater.eof:
            raise CallerError("bad_request", "a compressed message is cut off")
        return made

    def _too_large(self, size: int) -> CallerError:
        text = f"a message of {size} bytes exceeds the maximum allowed {self._limit} bytes"
        return CallerError("too_large", f"{text}: the server's operator may raise --http-max-input-size")
