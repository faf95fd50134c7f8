"""Where the values of a request stand among its bytes, and how they differ from request to request.

The load generator (load.c) numbers its requests and writes new values into each before it sends it; `changed` makes the
same bytes from the same number, so that an answer can be compared with what its own request asked. Pure.
"""

from __future__ import annotations

import base64
import json
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from work import Array

ALL_CHANGE = 256
"""Tensors of so many values change as a whole; of larger ones SPOTS groups of three values, spread evenly."""
SPOTS = 85
LARGE_SCALE = 1024.0
"""Changed values of a large tensor are so large that its mean shows them."""
_MASK = (1 << 64) - 1
_IDENTIFIER = re.compile(rb"bench-(\d{16})")
_NUMBER = re.compile(rb"\d+\.(\d+)")


class Kind(StrEnum):
    """How a changing part of a request is written."""

    FLOAT = "f"
    """A float of 32 bits, little-endian."""
    DIGITS = "d"
    """Decimal digits: a fraction, or those of a request id."""
    BASE64 = "b"
    """Three such floats as 16 characters of base64."""


@dataclass(frozen=True)
class ChangingPart:
    """Some bytes of a request that differ in each one sent."""

    kind: Kind
    offset: int
    size: int
    scale: float = 1.0

    def line(self) -> str:
        """As the load generator reads it."""
        return f"{self.kind} {self.offset} {self.size} {self.scale:g}\n"

    def written(self, random: int) -> bytes:
        """Its bytes, made of 64 random bits."""
        if self.kind is Kind.DIGITS:
            return str(random).zfill(self.size)[-self.size :].encode()
        if self.kind is Kind.FLOAT:
            return struct.pack("<f", self._value(random))
        return base64.b64encode(struct.pack("<3f", *(self._value(random >> 21 * place) for place in range(3))))

    def _value(self, random: int) -> float:
        """Between -scale and scale, exact in 32 bits."""
        return ((random & 0x1FFFFF) / 1048576.0 - 1.0) * self.scale


@dataclass(frozen=True)
class TensorBytes:
    """The part of a request that holds its tensor."""

    kind: Kind
    start: int
    end: int
    shape: tuple[int, ...]

    def read(self, message: bytes | bytearray) -> Array:
        """The tensor, as a server reads it."""
        part = message[self.start : self.end]
        if self.kind is Kind.DIGITS:
            return np.array(json.loads(b"[" + part + b"]"), np.float32).reshape(self.shape)
        floats = base64.b64decode(part) if self.kind is Kind.BASE64 else bytes(part)
        return np.frombuffer(floats, np.float32).reshape(self.shape)

    def parts(self, message: bytes) -> Iterator[ChangingPart]:
        """What changes of it."""
        if self.kind is Kind.DIGITS:
            for number in _NUMBER.finditer(message, self.start, self.end):
                yield ChangingPart(Kind.DIGITS, number.start(1), number.end(1) - number.start(1))
            return
        count = int(np.prod(self.shape))
        if self.kind is Kind.BASE64:
            yield from (
                ChangingPart(Kind.BASE64, self.start + 16 * (first // 3), 16, LARGE_SCALE) for first in _spots(count)
            )
        elif count <= ALL_CHANGE:
            yield from (ChangingPart(Kind.FLOAT, self.start + 4 * place, 4) for place in range(count))
        else:
            for first in _spots(count):
                for place in range(first, first + 3):
                    yield ChangingPart(Kind.FLOAT, self.start + 4 * place, 4, LARGE_SCALE)


def _spots(count: int) -> Iterator[int]:
    """The first places of the groups that change in a large tensor."""
    return (3 * (spot * (count // 3) // SPOTS) for spot in range(SPOTS))


def locate(message: bytes, x: Array) -> TensorBytes:
    """Where a request holds the tensor `x`: as floats, as base64 or as numbers of JSON in row-major order."""
    for kind, part in _encodings(x):
        if (start := message.find(part)) >= 0:
            return TensorBytes(kind, start, start + len(part), x.shape)
    raise AssertionError("a request does not hold its tensor")


def _encodings(x: Array) -> Iterator[tuple[Kind, bytes]]:
    yield Kind.FLOAT, x.tobytes()
    yield Kind.BASE64, base64.b64encode(x.tobytes())
    yield Kind.DIGITS, json.dumps(x.ravel().tolist())[1:-1].encode()


def changing_parts(message: bytes, tensor: TensorBytes) -> tuple[ChangingPart, ...]:
    """All that changes: the tensor's values, and request ids in header or JSON (`bench-` and 16 digits)."""
    ids = (ChangingPart(Kind.DIGITS, each.start(1), 16) for each in _IDENTIFIER.finditer(message[: 1 << 12]))
    return (*tensor.parts(message), *ids)


def changed(message: bytes, parts: Sequence[ChangingPart], serial: int) -> bytes:
    """The bytes of request number `serial`."""
    made = bytearray(message)
    for place, part in enumerate(parts):
        made[part.offset : part.offset + part.size] = part.written(_random(serial, place))
    return bytes(made)


def _random(serial: int, place: int) -> int:
    """64 bits by splitmix64, as in load.c."""
    z = ((serial << 16 | place) + 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ z >> 27) * 0x94D049BB133111EB) & _MASK
    return z ^ z >> 31


def read_parts(text: str) -> tuple[ChangingPart, ...]:
    """The inverse of `line`, for clients in Python."""
    words = (line.split() for line in text.splitlines())
    return tuple(ChangingPart(Kind(kind), int(at), int(size), float(scale)) for kind, at, size, scale in words)
