"""Tensor datatypes, and the size of a tensor in bytes, computed in unbounded integers.

Source of the names: Open Inference Protocol V2, "Tensor Data Types"; of TYPE_*: Triton's model_config.proto.
No numpy here, because the controller and the command line use this file; arrays are in `numpy_arrays.py`.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

ITEM_BYTES: Final[dict[str, int]] = {
    "BOOL": 1,
    "UINT8": 1,
    "UINT16": 2,
    "UINT32": 4,
    "UINT64": 8,
    "INT8": 1,
    "INT16": 2,
    "INT32": 4,
    "INT64": 8,
    "FP16": 2,
    "BF16": 2,
    "FP32": 4,
    "FP64": 8,
    "BYTES": 0,
}
"""Bytes of one element; 0 for BYTES, whose elements are a u32 length and that many bytes."""
RANK_LIMIT: Final = 16
_LENGTH: Final = struct.Struct("<I")


def config_name(datatype: str) -> str:
    """The name in a model configuration: `TYPE_FP32`; BYTES is called `TYPE_STRING` there."""
    return "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"


def from_config_name(name: str) -> str | None:
    """The datatype of a `TYPE_*` name, or None."""
    datatype = "BYTES" if name == "TYPE_STRING" else name.removeprefix("TYPE_")
    return datatype if name.startswith("TYPE_") and datatype in ITEM_BYTES else None


def element_count(shape: Sequence[int]) -> int:
    """The number of elements; 1 for rank 0. Never overflows."""
    return math.prod(shape)


def size_bytes(datatype: str, shape: Sequence[int]) -> int | None:
    """Bytes of a tensor, or None if only the data can tell (BYTES)."""
    item = ITEM_BYTES[datatype]
    return element_count(shape) * item if item else None


def pack_strings(strings: Iterable[bytes]) -> bytes:
    """The wire form of a BYTES tensor: for each element a u32 little-endian length, then the bytes."""
    parts: list[bytes] = []
    for each in strings:
        parts.append(_LENGTH.pack(len(each)))
        parts.append(each)
    return b"".join(parts)


def unpack_strings(data: bytes | bytearray | memoryview) -> Iterator[bytes]:
    """The elements of a BYTES tensor; ValueError if a length passes the end."""
    view = memoryview(data)
    at, end = 0, len(view)
    while at < end:
        if end - at < _LENGTH.size:
            raise ValueError(f"{end - at} bytes are left where a 4-byte length should be")
        (length,) = _LENGTH.unpack_from(view, at)
        at += _LENGTH.size
        if length > end - at:
            raise ValueError(f"an element claims {length} bytes, {end - at} are left")
        yield bytes(view[at : at + length])
        at += length


def shape_matches(declared: Sequence[int], shape: Sequence[int]) -> bool:
    """Whether a shape matches a declared one, in which -1 is any size."""
    return len(declared) == len(shape) and all(want in (-1, got) for want, got in zip(declared, shape, strict=True))
