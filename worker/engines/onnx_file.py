"""Reads from an ONNX file what onnxruntime does not tell: the classes of a ZipMap, the element shapes of sequences.

The file is protobuf; the few fields that are needed are found by their numbers (onnx.proto), and all others, weights
among them, are passed over. A file that cannot be read so far tells nothing: onnxruntime names its faults.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from mmsup.ipc.protobuf_wire import VARINT, fields, varint

NODE_LIMIT_BYTES: Final = 64 << 20
"""Larger nodes hold weights, and are passed over."""
LABELS_LIMIT_BYTES: Final = 64 << 10

Labels = tuple[str, ...] | tuple[int, ...]


@dataclass(slots=True)
class OnnxFacts:
    labels: dict[str, Labels] = field(default_factory=dict[str, Labels])
    """Classes of each ZipMap by the name of its output, in the order of its columns."""
    element_shapes: dict[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])
    """Of each sequence of tensors among inputs and outputs, -1 for any size; without those whose rank is open."""


def read_facts(path: str) -> OnnxFacts:
    facts = OnnxFacts()
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            _read_graph(memoryview(mapped), facts)
    except (OSError, ValueError):
        pass
    return facts


def _read_graph(data: memoryview, facts: OnnxFacts) -> None:
    with data:
        for model in fields(data, 0, len(data)):
            if model.number != 7:  # ModelProto.graph
                continue
            for number, _, start, end in fields(data, model.start, model.end):
                if number in (1, 11, 12) and end - start <= NODE_LIMIT_BYTES:  # GraphProto.node, .input, .output
                    _add(facts, number, bytes(data[start:end]))


def fits(labels: Sequence[str]) -> bool:
    """Whether these labels are few enough to travel with the model's metadata."""
    return sum(len(each) for each in labels) + 8 * len(labels) <= LABELS_LIMIT_BYTES


def _add(facts: OnnxFacts, number: int, data: bytes) -> None:
    if number == 1:
        if b"ZipMap" in data:
            _add_labels(facts, data)
        return
    members = dict(_fields(data))  # ValueInfoProto: name, type
    shape = _element_shape(_message(members, 2))
    if shape is not None:
        facts.element_shapes[_text(members.get(1, b""))] = shape


def _add_labels(facts: OnnxFacts, node: bytes) -> None:
    """NodeProto: output 2, op_type 4, attribute 5; AttributeProto: name 1, ints 8, strings 9."""
    members = list(_fields(node))
    outputs = [_text(value) for number, value in members if number == 2]
    if not outputs or [_text(value) for number, value in members if number == 4] != ["ZipMap"]:
        return
    for number, value in members:
        if number != 5 or not isinstance(value, bytes):
            continue
        inner = list(_fields(value))
        name = next((_text(each) for key, each in inner if key == 1), "")
        if name == "classlabels_int64s":
            facts.labels[outputs[0]] = tuple([each for key, raw in inner if key == 8 for each in _integers(raw)])
        elif name == "classlabels_strings":
            facts.labels[outputs[0]] = tuple([_text(raw) for key, raw in inner if key == 9])


def _element_shape(kind: bytes) -> tuple[int, ...] | None:
    """TypeProto: sequence_type 4; Sequence: elem_type 1; TypeProto: tensor_type 1; Tensor: shape 2; Shape: dim 1."""
    sequence = dict(_fields(kind))
    if 4 not in sequence:
        return None
    element = dict(_fields(_message(dict(_fields(_message(sequence, 4))), 1)))
    tensor = dict(_fields(_message(element, 1)))
    if 2 not in tensor:
        return None
    sizes = [dict(_fields(value)) for number, value in _fields(_message(tensor, 2)) if isinstance(value, bytes)]
    return tuple([size if isinstance(size := each.get(1, -1), int) else -1 for each in sizes])


def _message(members: dict[int, int | bytes], number: int) -> bytes:
    value = members.get(number, b"")
    return value if isinstance(value, bytes) else b""


def _text(value: int | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else ""


def _integers(value: int | bytes) -> list[int]:
    """One number, or packed ones; varints are unsigned, the numbers are int64."""
    numbers = [value] if isinstance(value, int) else []
    if isinstance(value, bytes):
        at = 0
        while at < len(value):
            number, at = varint(memoryview(value), at, len(value))
            numbers.append(number)
    return [each - (1 << 64) if each >> 63 else each for each in numbers]


def _fields(data: bytes | int) -> Iterator[tuple[int, int | bytes]]:
    """Field numbers and values of a message; ValueError if it is none."""
    if isinstance(data, int):
        raise ValueError("a number where a message should be")
    view = memoryview(data)
    for number, kind, start, end in fields(view, 0, len(data)):
        yield number, varint(view, start, end)[0] if kind == VARINT else data[start:end]
