"""Numpy arrays as tensors of the protocol, and back. Pure.

Strings are BYTES: arrays of `bytes` or `str` in, arrays of `bytes` objects out. BF16 comes as `ml_dtypes.bfloat16` if
that library is installed, else as the `uint16` of its bits.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]  # the element type is only known at run time
DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
_NAMES: Final = {dtype: name for name, dtype in DTYPES.items()}
_LENGTH: Final = struct.Struct("<I")


def datatype_of(array: Array) -> str:
    """The protocol's name of an array's type; ValueError if there is none."""
    if array.dtype.kind in "OSU":
        return "BYTES"
    if array.dtype.name == "bfloat16":
        return "BF16"
    name = _NAMES.get(array.dtype.newbyteorder("<"))
    if name is None:
        raise ValueError(f"arrays of {array.dtype} cannot be sent: convert it, for instance by .astype('float32')")
    return name


def dtype_of(datatype: str) -> np.dtype[Any]:
    """The type of arrays for a protocol's name; ValueError for an unknown one."""
    if datatype == "BYTES":
        return np.dtype(object)
    if datatype == "BF16":
        try:
            import ml_dtypes  # noqa: PLC0415 - not needed otherwise
        except ImportError:
            return np.dtype("<u2")
        made: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return made
    if datatype not in DTYPES:
        raise ValueError(f"{datatype!r:.40} is no datatype")
    return DTYPES[datatype]


def to_bytes(array: Array) -> memoryview:
    """Row-major and little-endian; without a copy where the array is so already."""
    if array.dtype.kind in "OSU":
        parts: list[bytes] = []
        for each in array.reshape(-1):
            text = each if isinstance(each, bytes) else str(each).encode()
            parts += _LENGTH.pack(len(text)), text
        return memoryview(b"".join(parts))
    plain = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return memoryview(plain.reshape(-1).view(np.uint8).data)


def from_bytes(data: memoryview, datatype: str, shape: Sequence[int]) -> Array:
    """A view of `data` but for strings, and where it is not aligned; ValueError if the sizes disagree."""
    if datatype == "BYTES":
        return _strings(data, shape)
    flat = np.frombuffer(data, dtype=dtype_of(datatype))
    return (flat if flat.flags.aligned else flat.copy()).reshape(shape)


def _strings(data: memoryview, shape: Sequence[int]) -> Array:
    found: list[bytes] = []
    at = 0
    while at < len(data):
        if len(data) - at < _LENGTH.size:
            raise ValueError("the strings end in the middle of a length")
        (length,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        if length > len(data) - at:
            raise ValueError("the strings end in the middle of one")
        found.append(bytes(data[at : at + length]))
        at += length
    array = np.empty(len(found), dtype=object)
    array[:] = found
    return array.reshape(shape)


def from_json(value: Any, datatype: str, shape: Sequence[int] | None = None) -> Array:  # any JSON value
    """An array of a number, a text, or a list of them; ValueError for anything else."""
    if datatype == "BYTES":
        flat = np.asarray(value, dtype=object).reshape(-1)
        array = np.empty(len(flat), dtype=object)
        array[:] = [each.encode() if isinstance(each, str) else bytes(each) for each in flat]
    else:
        array = np.atleast_1d(np.asarray(value, dtype=dtype_of(datatype)))
    return array if shape is None else array.reshape(shape)


def to_json(array: Array) -> Any:  # any JSON value
    """Nested lists; texts instead of bytes. ValueError for what has no form in JSON."""
    if datatype_of(array) in ("FP16", "BF16"):
        raise ValueError(f"arrays of {array.dtype} have no form in JSON, which streams need: send another type")
    if array.dtype.kind not in "OSU":
        return array.tolist()
    texts = [each.decode() if isinstance(each, bytes) else str(each) for each in array.reshape(-1)]
    made = np.empty(len(texts), dtype=object)
    made[:] = texts
    return made.reshape(array.shape).tolist()
