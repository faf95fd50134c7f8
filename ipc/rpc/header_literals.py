"""Header blocks of literals that are not indexed (RFC 7541, 6.2.2): no table, no state, constant bytes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

Headers = list[tuple[bytes, bytes]]
STATUS_200: Final = b"\x88"
"""`:status: 200` by the static table, the one header that we send indexed."""
_LONG: Final = 127
"""In the seven bits of a length: it goes on in the next bytes (5.1)."""


def literal(name: bytes, value: bytes) -> bytes:
    """One header, without indexing and without Huffman's code."""
    return b"\x00" + _text(name) + _text(value)


def block_of(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    return b"".join([literal(name, value) for name, value in headers])


def read_block(block: bytes) -> Headers:
    """The headers in a block of this file's making; ValueError for another one."""
    made: Headers = []
    at = 0
    if block.startswith(STATUS_200):
        made.append((b":status", b"200"))
        at = 1
    while at < len(block):
        if block[at]:
            raise ValueError("a header is no literal")
        name, at = _read_text(block, at + 1)
        value, at = _read_text(block, at)
        made.append((name, value))
    return made


def _text(value: bytes) -> bytes:
    """RFC 7541, 5.2 and 5.1: a length with a prefix of 7 bits, and the bytes."""
    size = len(value)
    if size < _LONG:
        return bytes((size,)) + value
    made, rest = bytearray((_LONG,)), size - _LONG
    while rest >= 128:
        made.append(rest & 127 | 128)
        rest >>= 7
    made.append(rest)
    return bytes(made) + value


def _read_text(block: bytes, at: int) -> tuple[bytes, int]:
    try:
        size, shift = block[at], 0
        at += 1
        if size == _LONG:
            while True:
                each = block[at]
                at += 1
                size += (each & 127) << shift
                shift += 7
                if each < 128:
                    break
    except IndexError:
        raise ValueError("a header is cut off") from None
    if size > len(block) - at:
        raise ValueError("a header is cut off")
    return block[at : at + size], at + size
