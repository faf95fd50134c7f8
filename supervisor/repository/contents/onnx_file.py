"""An ONNX file: whether it is whole, and whether the files with its external data are there.

It is a protobuf message (onnx.proto), of which the lengths of fields are walked; tensors are skipped, not read.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from typing import Final

from mmsup.supervisor.config.config_error import InvalidValue, displayed

_MODEL_GRAPH: Final = 7
_GRAPH_INITIALIZER: Final = 5
_TENSOR_EXTERNAL_DATA: Final = 13
_ENTRY_KEY: Final = 1
_ENTRY_VALUE: Final = 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
"""Wire types of protobuf."""


def check_file(path: str) -> None:
    """InvalidValue if the file is cut, is no ONNX, or misses external data."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        view = memoryview(mapped)
        try:
            wanted = _external_data(view)
        finally:
            view.release()
    folder = os.path.dirname(path)
    problems = [problem for location in wanted if (problem := _missing(folder, location, wanted[location]))]
    if problems:
        raise InvalidValue(*problems)


def _external_data(data: memoryview) -> dict[str, int]:
    """Location of each file of external data to its least size; InvalidValue if the message is not whole."""
    found: dict[str, int] = {}
    graphs = 0
    for number, start, end in _fields(data, 0, len(data)):
        if number == _MODEL_GRAPH:
            graphs += 1
            for field, low, high in _fields(data, start, end):
                if field == _GRAPH_INITIALIZER:
                    location, size = _location(data, low, high)
                    if location:
                        found[location] = max(found.get(location, 0), size)
    if not graphs:
        raise InvalidValue("holds no ONNX graph: it is cut short, or no ONNX file")
    return found


def _location(data: memoryview, start: int, end: int) -> tuple[str, int]:
    """File of a tensor's external data, empty if there is none, and the least size of that file."""
    entries: dict[str, str] = {}
    for number, low, high in _fields(data, start, end):
        if number == _TENSOR_EXTERNAL_DATA:
            pair = {field: bytes(data[a:b]).decode(errors="replace") for field, a, b in _fields(data, low, high)}
            entries[pair.get(_ENTRY_KEY, "")] = pair.get(_ENTRY_VALUE, "")
    offset, length = entries.get("offset", "0"), entries.get("length", "0")
    size = int(offset) + int(length) if offset.isdecimal() and length.isdecimal() else 0
    return entries.get("location", ""), size


def _missing(folder: str, location: str, size: int) -> str:
    """What is wrong with a file of external data; empty if nothing."""
    path = os.path.join(folder, location)
    if not os.path.isfile(path):
        return f"has its weights in {displayed(location)}, which is not beside it: copy that file too"
    there = os.path.getsize(path)
    if there < size:
        return (
            f"has its weights in {displayed(location)}, which is cut short: {there} of at least {size} bytes are there"
        )
    return ""


def _fields(data: memoryview, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, start and end of each field of the message in data[at:end]; InvalidValue if one does not fit into it."""
    while at < end:
        tag, at = _varint(data, at, end)
        number, kind = tag >> 3, tag & 7
        start = at
        if kind == _VARINT:
            _, at = _varint(data, at, end)
        elif kind == _BYTES:
            length, start = _varint(data, at, end)
            at = start + length
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
        else:
            raise InvalidValue("is no ONNX file")
        if at > end:
            raise InvalidValue(f"is cut short: {at - end} more bytes are announced than the file has")
        if not number:
            raise InvalidValue("is no ONNX file")
        yield number, start, at


def _varint(data: memoryview, at: int, end: int) -> tuple[int, int]:
    """The number at `at`, and where it ends."""
    value = shift = 0
    while at < end and shift < 64:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise InvalidValue("is cut short, or no ONNX file")
