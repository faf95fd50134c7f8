"""An ONNX file: whether it is whole, and whether the files with its external data are there.

It is a protobuf message (onnx.proto), of which the lengths of fields are walked; tensors are skipped, not read.
"""

from __future__ import annotations

import mmap
import os
from typing import Final

from mmsup.ipc.protobuf_wire import Field, ProtobufError, fields
from mmsup.supervisor.config.config_error import InvalidValue, displayed

NO_ONNX: Final = "is cut short, or no ONNX file"
_MODEL_GRAPH: Final = 7
_GRAPH_INITIALIZER: Final = 5
_TENSOR_EXTERNAL_DATA: Final = 13
_ENTRY_KEY: Final = 1
_ENTRY_VALUE: Final = 2


def check_file(path: str) -> None:
    """InvalidValue if the file is cut, is no ONNX, or misses external data."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        view = memoryview(mapped)
        try:
            wanted = _external_data(view)
        except ProtobufError as error:
            missing = error.missing_bytes
            raise InvalidValue(
                f"is cut short: {missing} more bytes are announced than the file has" if missing else NO_ONNX
            ) from None
        finally:
            view.release()
    folder = os.path.dirname(path)
    problems = [problem for location in wanted if (problem := _missing(folder, location, wanted[location]))]
    if problems:
        raise InvalidValue(*problems)


def _external_data(data: memoryview) -> dict[str, int]:
    """Location of each file of external data to its least size; ProtobufError if it is not whole."""
    found: dict[str, int] = {}
    graphs = 0
    for number, _, start, end in fields(data, 0, len(data)):
        if number == _MODEL_GRAPH:
            graphs += 1
            for field, _, low, high in fields(data, start, end):
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
    for number, _, low, high in fields(data, start, end):
        if number == _TENSOR_EXTERNAL_DATA:
            pair = {each.number: _text(data, each) for each in fields(data, low, high)}
            entries[pair.get(_ENTRY_KEY, "")] = pair.get(_ENTRY_VALUE, "")
    offset, length = entries.get("offset", "0"), entries.get("length", "0")
    size = int(offset) + int(length) if offset.isdecimal() and length.isdecimal() else 0
    return entries.get("location", ""), size


def _text(data: memoryview, value: Field) -> str:
    return bytes(data[value.start : value.end]).decode(errors="replace")


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
