"""Protobuf's wire format: which fields a message has and where they are, without its schema. Pure.

Source: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

VARINT: Final = 0
_FIXED64, _BYTES, _FIXED32 = 1, 2, 5
_VARINT_BYTES: Final = 10


class ProtobufError(ValueError):
    """These bytes are no message. `missing_bytes`: how many its last field announces beyond the end, 0 if unknown."""

    def __init__(self, text: str, missing_bytes: int = 0) -> None:
        super().__init__(text)
        self.missing_bytes = missing_bytes


class Field(NamedTuple):
    number: int
    kind: int
    """VARINT, or another wire type."""
    start: int
    end: int
    """Of its value in the data."""


def fields(data: memoryview, at: int, end: int) -> Iterator[Field]:
    """The fields of the message in data[at:end], in order; ProtobufError at the first that does not fit into it."""
    while at < end:
        tag, start = varint(data, at, end)
        number, kind = tag >> 3, tag & 7
        if kind == VARINT:
            _, at = varint(data, start, end)
        elif kind == _BYTES:
            length, start = varint(data, start, end)
            at = start + length
        elif kind in (_FIXED64, _FIXED32):
            at = start + (8 if kind == _FIXED64 else 4)
        else:
            raise ProtobufError(f"wire type {kind}")
        if at > end:
            raise ProtobufError("a field passes the end", at - end)
        if not number:
            raise ProtobufError("a field without a number")
        yield Field(number, kind, start, at)


def varint(data: memoryview, at: int, end: int) -> tuple[int, int]:
    """The unsigned number at `at`, and where it ends; ProtobufError if data[at:end] holds none."""
    value = 0
    for index in range(min(_VARINT_BYTES, end - at)):
        byte = data[at + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, at + index + 1
    raise ProtobufError("a number does not end")
