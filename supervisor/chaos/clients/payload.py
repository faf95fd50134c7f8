"""Payloads that tell whose they are: FP32 values made from a number, so that a reply can be held against any request.

    [tenant, number // 2**20, number % 2**20, a stretch of one fixed noise that begins where the number says]

All values are whole and below 2**24: they survive JSON and binary alike. Pure.
"""

from __future__ import annotations

import random
from array import array
from dataclasses import dataclass
from typing import Final

TAG_VALUES: Final = 3
"""Leading values that name the request."""
MAX_VALUES: Final = 1 << 16
"""Values of the largest payload."""
_SPLIT: Final = 1 << 20
_STEP: Final = 7919
_BYTES: Final = 4


def _noise() -> array[float]:
    return array("f", array("H", random.Random(0).randbytes(4 * MAX_VALUES)))


_NOISE: Final = _noise()


@dataclass(frozen=True, slots=True)
class Payload:
    """What one request carries, and what must come back."""

    tenant: int
    number: int
    values: array[float]

    @property
    def data(self) -> bytes:
        """Its bytes, little-endian as the protocol has them."""
        return self.values.tobytes()


def make_payload(tenant: int, number: int, size: int) -> Payload:
    """The payload of this request: `size` values, at least `TAG`."""
    assert TAG_VALUES <= size <= MAX_VALUES, f"no payload has {size} values"
    begin = number * _STEP % MAX_VALUES
    values = array("f", (float(tenant), float(number // _SPLIT), float(number % _SPLIT)))
    values.extend(_NOISE[begin : begin + size - TAG_VALUES])
    return Payload(tenant, number, values)


def request_number_of(data: bytes) -> int | None:
    """The number of the request that these bytes belong to, whole and unharmed; None if to none."""
    if len(data) % _BYTES or not TAG_VALUES * _BYTES <= len(data) <= MAX_VALUES * _BYTES:
        return None
    values = array("f", data)
    tag = values[:TAG_VALUES]
    if any(not 0 <= each < _SPLIT or each != int(each) for each in tag):
        return None
    number = int(tag[1]) * _SPLIT + int(tag[2])
    return number if make_payload(int(tag[0]), number, len(values)).data == data else None
