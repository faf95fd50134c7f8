"""JSON tensors: the bytes of a tensor from its `data` member, and back. Pure.

`data` is flat, or nested exactly as the shape. A value outside the range of its datatype is refused, never wrapped.
"""

from __future__ import annotations

import array
import base64
import binascii
import functools
import itertools
import struct
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import orjson

from mmsup.gateway.protocol.json_document import as_list
from mmsup.gateway.protocol.large_json import NumberList
from mmsup.ipc.errors import CallerError
from mmsup.ipc.tensors.datatypes import element_count, pack_strings, unpack_strings
from mmsup.ipc.tensors.numpy_arrays import NUMPY, Array, as_bytes

BINARY_ONLY: Final = frozenset({"FP16", "BF16"})
"""JSON has no literals for these; numbers would have to be rounded."""
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
_OF_NUMPY: Final = orjson.OPT_SERIALIZE_NUMPY
PIECE_ELEMENTS: Final = 1 << 14
"""Elements written in one step, which holds the interpreter lock for half a millisecond."""
_FLOATS: Final = frozenset({"FP32", "FP64"})
_NUMBERS: Final = frozenset({int, float})
PACKED_LIMIT: Final = 1 << 12
"""Floats packed in one call, each an argument; half the time of an array and a search for infinities."""


class TensorDataError(Exception):
    """Why `data` is not a tensor of its declared datatype and shape."""


def to_bytes(
    data: Any,  # any JSON value
    datatype: str,
    shape: Sequence[int],
    *,
    is_base64: bool = False,
) -> bytes | memoryview:
    """The bytes of a tensor written as JSON; or TensorDataError. `is_base64`: each string is one in base64."""
    if datatype in BINARY_ONLY:
        raise TensorDataError(f"{datatype} has no form in JSON: send it as binary data (binary_data_size)")
    values = _flat_values(data, shape)
    if isinstance(values, NumberList):
        return _number_list_bytes(values, datatype)
    if datatype == "BYTES":
        return pack_strings(_from_base64(values) if is_base64 else _encoded(values))
    kinds = set(map(type, values))
    if datatype == "BOOL":
        if kinds - {bool}:
            raise TensorDataError(f"{_first(values, frozenset({bool}))} is not true or false")
        return bytes(values)
    if datatype in _FLOATS:
        return _floats(values, kinds, datatype)
    if kinds - {int}:
        raise TensorDataError(f"{_first(values, frozenset({int}))} is not an integer of {datatype}")
    try:
        return memoryview(array.array(_CODES[datatype], values)).cast("B")
    except OverflowError:
        raise TensorDataError(f"{_first_out_of_range(values, datatype)} is out of the range of {datatype}") from None


def _flat_values(data: Any, shape: Sequence[int]) -> list[Any] | NumberList:  # JSON values, of unchecked types
    count = element_count(shape)
    values = data if isinstance(data, NumberList) else as_list(data)
    if values is None:
        if shape:
            raise TensorDataError("data is not a list")
        return [data]
    if isinstance(values, NumberList) or len(shape) <= 1 or not values or not isinstance(values[0], list | NumberList):
        if len(values) != count:
            raise TensorDataError(f"shape {list(shape)} needs {count} elements, data has {len(values)}")
        return values
    return _flatten(values, shape)


def _flatten(values: list[Any], shape: Sequence[int]) -> list[Any] | NumberList:  # as in `_flat`
    level: list[Any] = [values]
    for axis, size in enumerate(shape, 1):
        is_last = axis == len(shape)
        for each in level:
            if _length(each, may_be_numbers=is_last) != size:
                raise TensorDataError(f"data is nested in another way than shape {list(shape)}")
        if is_last and all(isinstance(each, NumberList) for each in level):
            return NumberList([piece for each in level for piece in each.pieces])
        level = list(
            itertools.chain.from_iterable(each.tolist() if isinstance(each, NumberList) else each for each in level)
        )
    return level


def _length(row: Any, *, may_be_numbers: bool) -> int:  # any JSON value
    """The number of elements of a row, -1 if it is none."""
    if isinstance(row, NumberList):
        return len(row) if may_be_numbers else -1
    values = as_list(row)
    return -1 if values is None else len(values)


def _number_list_bytes(numbers: NumberList, datatype: str) -> memoryview:
    """The bytes of many numbers, converted piece by piece."""
    if datatype == "BYTES":
        raise TensorDataError("a number is not a string")
    made = np.empty(len(numbers), NUMPY[datatype])
    at = 0
    for each in numbers.pieces:
        made[at : at + len(each)] = _cast(each, datatype)
        at += len(each)
    return as_bytes(made)


def _cast(piece: Array, datatype: str) -> Array:
    """The numbers converted to the datatype; or TensorDataError."""
    is_bool, is_float = piece.dtype.kind == "b", piece.dtype.kind == "f"
    if is_bool != (datatype == "BOOL"):
        raise TensorDataError("a boolean is not a number" if is_bool else "a number is not true or false")
    if is_bool:
        return piece
    if datatype not in _FLOATS:
        if is_float:
            raise TensorDataError(f"a number with a fraction or an exponent is not an integer of {datatype}")
        limits = np.iinfo(NUMPY[datatype])
        for edge in (int(piece.min()), int(piece.max())):
            if not int(limits.min) <= edge <= int(limits.max):
                raise TensorDataError(f"{edge} is out of the range of {datatype}")
        return piece.astype(NUMPY[datatype])
    with np.errstate(over="ignore"):
        made = piece.astype(NUMPY[datatype])
    overflown = np.isinf(made) & np.isfinite(piece)
    if overflown.any():
        raise TensorDataError(f"{piece[overflown][0]} is out of the range of {datatype}")
    return made


def _encoded(values: list[Any]) -> list[bytes]:
    try:
        return [each.encode() for each in values]
    except AttributeError:
        raise TensorDataError(f"{_first(values, frozenset({str}))} is not a string") from None
    except UnicodeEncodeError:
        raise TensorDataError("a string holds half of a surrogate pair, which is not valid text") from None


def _from_base64(values: list[Any]) -> list[bytes]:
    try:
        return [base64.b64decode(each, validate=True) for each in _encoded(values)]
    except binascii.Error as error:
        raise TensorDataError(f"a string is not base64: {error}") from None


def _floats(values: list[Any], kinds: set[type], datatype: str) -> memoryview:
    if kinds - _NUMBERS:
        raise TensorDataError(f"{_first(values, _NUMBERS)} is not a number")
    if len(values) > PACKED_LIMIT:
        return _floats_checked(values, datatype)
    try:
        return memoryview(_packer(len(values), _CODES[datatype]).pack(*values))
    except (OverflowError, struct.error):
        return _floats_checked(values, datatype)


@functools.lru_cache(256)
def _packer(count: int, code: str) -> struct.Struct:
    """Packs `count` numbers; OverflowError for a finite number that would become infinite."""
    return struct.Struct(f"<{count}{code}")


def _floats_checked(values: list[Any], datatype: str) -> memoryview:
    """As `_floats`, with an error that names the number."""
    try:
        made = array.array(_CODES[datatype], values)
    except OverflowError:
        raise TensorDataError(f"an integer is out of the range of {datatype}") from None
    if datatype == "FP32":
        infinite = np.isinf(np.frombuffer(made, np.float32))
        if infinite.any():
            for index in np.flatnonzero(infinite).tolist():
                if values[index] not in (float("inf"), float("-inf")):
                    raise TensorDataError(f"{values[index]} is out of the range of FP32")
    return memoryview(made).cast("B")


def number_packer(datatype: str, shape: Sequence[int]) -> struct.Struct | None:
    """Packs the numbers of a flat list without a boolean in it into the same bytes as `to_bytes`; struct.error or
    OverflowError where `to_bytes` must say what is wrong. None for datatypes that are not numbers, or have no form in
    JSON."""
    code, count = _CODES.get(datatype, ""), element_count(shape)
    return _packer(count, code) if code and count <= PACKED_LIMIT else None


def _first(values: list[Any], kinds: frozenset[type]) -> str:
    wrong = next(each for each in values if type(each) not in kinds)
    if isinstance(wrong, list | dict):
        return "a list" if isinstance(wrong, list) else "an object"
    return f"{orjson.dumps(wrong).decode():.40}" if wrong == wrong else "NaN"


def _first_out_of_range(values: list[int], datatype: str) -> int:
    limits = np.iinfo(NUMPY[datatype])
    return next(each for each in values if not int(limits.min) <= each <= int(limits.max))


def to_json(data: bytes | memoryview, datatype: str, name: str, *, is_base64: bool = False) -> bytes:
    """The flat JSON list of a tensor's elements; each number parses to the same value again. `is_base64`: strings
    are written so, whatever bytes they are."""
    if type(data) is bytes and datatype in _CODES and len(data) <= PIECE_ELEMENTS:  # of a small reply, and aligned
        written = orjson.dumps(np.frombuffer(data, NUMPY[datatype]), None, _OF_NUMPY)
        if b"null" not in written:
            return written
    if datatype == "BYTES":
        strings = unpack_strings(memoryview(data))
        if is_base64:
            return orjson.dumps([base64.b64encode(each).decode() for each in strings])
        try:
            return orjson.dumps([each.decode() for each in strings])
        except UnicodeDecodeError:
            text = f"output '{name}' holds bytes that are not UTF-8 text: ask for binary_data, or content_type base64"
            raise CallerError("bad_request", text) from None
    values = np.frombuffer(data, NUMPY[datatype])  # its size was checked against its shape
    if not values.flags.aligned:
        values = values.copy()
    if values.size <= PIECE_ELEMENTS:
        return _piece_to_json(values)
    pieces = [values[at : at + PIECE_ELEMENTS] for at in range(0, values.size, PIECE_ELEMENTS)]
    return b"[" + b",".join(_piece_to_json(each)[1:-1] for each in pieces) + b"]"


def nested_to_json(values: Array) -> bytes:
    """The JSON list of an array of numbers, nested as its shape, of one axis or more."""
    return b"".join(nested_pieces(values))


def nested_pieces(values: Array) -> Iterator[bytes]:
    """The same in pieces, of which each is written in one step."""
    if values.size <= PIECE_ELEMENTS:
        yield _piece_to_json(np.ascontiguousarray(values))
        return
    row = values.size // len(values)
    step = max(1, PIECE_ELEMENTS // row)
    yield b"["
    for at in range(0, len(values), step):
        if at:
            yield b","
        if row > PIECE_ELEMENTS:
            yield from nested_pieces(values[at])
        else:
            yield _piece_to_json(values[at : at + step])[1:-1]
    yield b"]"


def _piece_to_json(values: Array) -> bytes:
    text = orjson.dumps(values, None, _OF_NUMPY)
    if values.dtype.kind != "f" or b"null" not in text:
        return text
    # orjson writes null for NaN and infinities; clients expect the bare words.
    parts = text.split(b"null")
    others = values[~np.isfinite(values)].tolist()
    words = [b"NaN" if value != value else b"Infinity" if value > 0 else b"-Infinity" for value in others]
    return b"".join(itertools.chain.from_iterable(zip(parts, [*words, b""], strict=True)))
