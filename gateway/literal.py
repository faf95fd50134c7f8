"""Tensors written out in JSON: their bytes from a `data` member, and back. Pure.

`data` is flat, or nested exactly as the shape. What does not fit its datatype is refused, never wrapped.
"""

from __future__ import annotations

import array
import itertools
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import orjson

from mmsup.gateway.document import as_list
from mmsup.ipc.array import NUMPY, Array, as_array
from mmsup.ipc.errors import CallerError
from mmsup.ipc.tensor import elements, pack_strings, unpack_strings

BINARY_ONLY: Final = frozenset({"FP16", "BF16"})
"""JSON has no literal for these; their numbers would have to be rounded."""
_CODES: Final = {
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP32": "f",
    "FP64": "d",
}
_FLOATS: Final = frozenset({"FP32", "FP64"})
_NUMBERS: Final = frozenset({int, float})


class Unfit(Exception):  # noqa: N818 - becomes a CallerError that names the tensor
    """Why `data` is not a tensor of the datatype and shape that it is declared with."""


def to_bytes(data: Any, datatype: str, shape: Sequence[int]) -> bytes | memoryview:  # data: any JSON value
    """The bytes of a tensor written as JSON; Unfit says what is wrong with it."""
    if datatype in BINARY_ONLY:
        raise Unfit(f"{datatype} has no form in JSON: send it as binary data (binary_data_size)")
    values = _flat(data, shape)
    if datatype == "BYTES":
        return pack_strings(_encoded(values))
    kinds = set(map(type, values))
    if datatype == "BOOL":
        if kinds - {bool}:
            raise Unfit(f"{_first(values, frozenset({bool}))} is not true or false")
        return bytes(values)
    if datatype in _FLOATS:
        return _floats(values, kinds, datatype)
    if kinds - {int}:
        raise Unfit(f"{_first(values, frozenset({int}))} is not an integer of {datatype}")
    try:
        return memoryview(array.array(_CODES[datatype], values)).cast("B")
    except OverflowError:
        raise Unfit(f"{_outside(values, datatype)} is out of the range of {datatype}") from None


def _flat(data: Any, shape: Sequence[int]) -> list[Any]:  # JSON values; their types are checked by datatype
    count = elements(shape)
    values = as_list(data)
    if values is None:
        if shape:
            raise Unfit("data is not a list")
        return [data]
    if len(shape) <= 1 or not values or not isinstance(values[0], list):
        if len(values) != count:
            raise Unfit(f"shape {list(shape)} needs {count} elements, data has {len(values)}")
        return values
    level: list[Any] = [values]
    for size in shape:
        for each in map(as_list, level):
            if each is None or len(each) != size:
                raise Unfit(f"data is nested in another way than shape {list(shape)}")
        level = list(itertools.chain.from_iterable(level))
    return level


def _encoded(values: list[Any]) -> list[bytes]:
    try:
        return [each.encode() for each in values]
    except AttributeError:
        raise Unfit(f"{_first(values, frozenset({str}))} is not a string") from None
    except UnicodeEncodeError:
        raise Unfit("a string holds half of a surrogate pair, which is no text") from None


def _floats(values: list[Any], kinds: set[type], datatype: str) -> memoryview:
    if kinds - _NUMBERS:
        raise Unfit(f"{_first(values, _NUMBERS)} is not a number")
    try:
        made = array.array(_CODES[datatype], values)
    except OverflowError:
        raise Unfit(f"an integer is out of the range of {datatype}") from None
    if datatype == "FP32":
        infinite = np.isinf(np.frombuffer(made, np.float32))
        if infinite.any():
            for index in np.flatnonzero(infinite).tolist():
                if values[index] not in (float("inf"), float("-inf")):
                    raise Unfit(f"{values[index]} is out of the range of FP32")
    return memoryview(made).cast("B")


def _first(values: list[Any], kinds: frozenset[type]) -> str:
    wrong = next(each for each in values if type(each) not in kinds)
    if isinstance(wrong, list | dict):
        return "a list" if isinstance(wrong, list) else "an object"
    return f"{orjson.dumps(wrong).decode():.40}" if wrong == wrong else "NaN"


def _outside(values: list[int], datatype: str) -> int:
    limits = np.iinfo(NUMPY[datatype])
    return next(each for each in values if not int(limits.min) <= each <= int(limits.max))


def to_json(data: memoryview, datatype: str, shape: Sequence[int], name: str) -> bytes:
    """The flat JSON list of a tensor's elements, each written so that it reads back the same."""
    if datatype == "BYTES":
        return _strings(data, name)
    values = as_array(data, datatype, shape).reshape(-1)
    text = orjson.dumps(np.ascontiguousarray(values), option=orjson.OPT_SERIALIZE_NUMPY)
    if datatype in _FLOATS and not np.isfinite(values).all():
        return _with_words(text, values)
    return text


def _with_words(text: bytes, values: Array) -> bytes:
    """orjson writes null for what JSON cannot say; clients read the words."""
    parts = text[1:-1].split(b",")
    for index in np.flatnonzero(~np.isfinite(values)).tolist():
        value = values[index]
        parts[index] = b"NaN" if np.isnan(value) else b"Infinity" if value > 0 else b"-Infinity"
    return b"[" + b",".join(parts) + b"]"


def _strings(data: memoryview, name: str) -> bytes:
    try:
        return orjson.dumps([each.decode() for each in unpack_strings(data)])
    except UnicodeDecodeError:
        text = f"output '{name}' holds bytes that are not UTF-8 text: ask for binary_data"
        raise CallerError("bad_request", text) from None
