"""Payloads that identify their request: FP32 values made from its number, so that any reply can be attributed. Pure.

    [tenant, number // 2**20, number % 2**20, values of a fixed noise from an offset that the number gives]

All values are whole and below 2**24, so that they survive JSON and binary alike.
"""

from __future__ import annotations

import random
from array import array
from dataclasses import dataclass
from typing import Final

TAG_VALUES: Final = 3
"""Leading values that identify the request."""
MAX_VALUES: Final = 1 << 16
_SPLIT: Final = 1 << 20
_STEP: Final = 7919
_BYTES: Final = 4
_NOISE: Final = array("f", array("H", random.Random(0).randbytes(4 * MAX_VALUES)))


@dataclass(frozen=True, slots=True)
class Payload:
    """The input of one request, which is also the expected output."""

    tenant: int
    number: int
    values: array[float]

    @property
    def data(self) -> bytes:
        """The values as little-endian FP32."""
        return self.values.tobytes()


def make_payload(tenant: int, number: int, size: int) -> Payload:
    """The payload of a request: `size` values, TAG_VALUES to MAX_VALUES."""
    assert TAG_VALUES <= size <= MAX_VALUES, f"no payload has {size} values"
    begin = number * _STEP % MAX_VALUES
    values = array("f", (float(tenant), float(number // _SPLIT), float(number % _SPLIT)))
    values.extend(_NOISE[begin : begin + size - TAG_VALUES])
    return Payload(tenant, number, values)


def request_number_of(data: bytes) -> int | None:
    """The number of the request whose complete payload these bytes are; None if they are none."""
    if len(data) % _BYTES or not TAG_VALUES * _BYTES <= len(data) <= MAX_VALUES * _BYTES:
        return None
    values = array("f", data)
    tag = values[:TAG_VALUES]
    if any(not 0 <= each < _SPLIT or each != int(each) for each in tag):
        return None
    number = int(tag[1]) * _SPLIT + int(tag[2])
    return number if make_payload(int(tag[0]), number, len(values)).data == data else None
