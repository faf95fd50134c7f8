"""Datatypes as `triton_python_backend_utils` names them: `TYPE_*`, Triton's numbers, numpy's types.

The numbers are those of TRITONSERVER_DataType in tritonserver.h. BF16, which numpy has not, is the type of ml_dtypes.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from mmsup.ipc.tensors.datatypes import config_name
from mmsup.ipc.tensors.numpy_arrays import NUMPY

_NUMBERED: Final = (
    *("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"),
    *("FP16", "FP32", "FP64", "BYTES", "BF16"),
)
_NUMBERS: Final = {name: number for number, name in enumerate(_NUMBERED, start=1)}
_TYPES: Final[dict[int, type[Any]]] = {_NUMBERS[name]: dtype.type for name, dtype in NUMPY.items()}
TYPES_BY_NAME: Final[dict[str, type[Any]]] = {config_name(name): dtype.type for name, dtype in NUMPY.items()}
TYPES_BY_NAME["TYPE_BOOL"] = bool
_NUMBERS_BY_DTYPE: Final = {dtype: _NUMBERS[name] for name, dtype in NUMPY.items()}


def triton_string_to_numpy(triton_type_string: str) -> type[Any]:  # of any element
    """The numpy type of `TYPE_FP32` and others; KeyError for a word that is none."""
    return TYPES_BY_NAME[triton_type_string]


def triton_to_numpy_type(data_type: int) -> type[Any] | None:  # of any element
    """The numpy type of Triton's number; None for one that is none."""
    return _TYPES.get(int(data_type))


def numpy_to_triton_type(data_type: Any) -> int | None:  # what np.dtype takes
    """Triton's number of a numpy type; None for one that no tensor has."""
    dtype = np.dtype(data_type)
    return _NUMBERS["BYTES"] if dtype.kind in "OSU" else _NUMBERS_BY_DTYPE.get(dtype)
