"""Tensors as numpy arrays: views of the tensor's bytes where the datatype allows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt

from mmsup.ipc.tensors.datatypes import pack_strings, unpack_strings

Array = npt.NDArray[Any]  # the element type is only known at run time

NUMPY: Final[dict[str, np.dtype[Any]]] = {
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
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype(np.object_),
}
DATATYPE: Final[dict[np.dtype[Any], str]] = {dtype: name for name, dtype in NUMPY.items()}


def datatype_of(array: Array) -> str | None:
    """The V2 datatype of an array, or None; strings and objects are BYTES."""
    return "BYTES" if array.dtype.kind in "OSU" else DATATYPE.get(array.dtype)


def as_array(data: bytes | bytearray | memoryview, datatype: str, shape: Sequence[int]) -> Array:
    """An array of `shape` over `data`, a view except for BYTES; ValueError if the sizes disagree.

    A tensor that is not aligned to its element's size is copied: kernels are slow on such views or refuse them.
    """
    if datatype == "BYTES":
        strings = list(unpack_strings(data))
        array = np.empty(len(strings), dtype=np.object_)
        array[:] = strings
        return array.reshape(shape)
    flat = np.frombuffer(data, dtype=NUMPY[datatype])
    view = flat if flat.flags.aligned else flat.copy()
    return view.reshape(shape)


def as_bytes(array: Array) -> memoryview:
    """The wire form of an array: row-major, little-endian, BYTES with length prefixes."""
    if array.dtype.kind in "OSU":
        strings = (each if isinstance(each, bytes) else str(each).encode() for each in array.reshape(-1))
        return memoryview(pack_strings(strings))
    flat = np.ascontiguousarray(array).reshape(-1)
    return flat.view(np.uint8).data
