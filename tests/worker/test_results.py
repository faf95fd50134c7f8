"""Outputs on their way to a gateway."""

from __future__ import annotations

import numpy as np
import pytest

from mmsup.ipc.array import NUMPY, Array, as_array
from mmsup.ipc.specs import INLINE_LIMIT_BYTES
from mmsup.worker.results import LOOK_BYTES, lay_out, outputs_of, place, room

LIMIT = INLINE_LIMIT_BYTES


def test_small_outputs_travel_in_the_reply_and_need_no_room() -> None:
    outputs = outputs_of({"y": np.arange(LIMIT, dtype=np.uint8)}, {"y": "UINT8"})
    assert room(outputs) == 0
    (tensor,) = place(outputs, None, -1, 0)
    assert (tensor.segment, tensor.size, tensor.shape) == (-1, LIMIT, (LIMIT,))
    assert tensor.data == bytes(np.arange(LIMIT, dtype=np.uint8))


def test_large_outputs_are_packed_at_64_byte_steps_in_their_order() -> None:
    arrays: dict[str, Array] = {
        "a": np.full(LIMIT + 1, 1, np.uint8),
        "small": np.zeros(3, np.uint8),
        "b": np.full((2, LIMIT), 2, np.uint8),
    }
    outputs = outputs_of(arrays, dict.fromkeys(arrays, "UINT8"))
    step = LIMIT + 64
    assert room(outputs) == step + 2 * LIMIT
    memory = bytearray(room(outputs))
    first, small, second = place(outputs, memoryview(memory), 5, 1024)
    assert (first.segment, first.offset, first.size) == (5, 1024, LIMIT + 1)
    assert small.segment == -1
    assert (second.segment, second.offset, second.size) == (5, 1024 + step, 2 * LIMIT)
    assert memory[: LIMIT + 1] == b"\1" * (LIMIT + 1)
    assert memory[step:] == b"\2" * (2 * LIMIT)


@pytest.mark.parametrize("datatype", sorted(NUMPY))
@pytest.mark.parametrize("shape", [(3, 2), (0, 4), (), (40, 60)])
def test_an_array_comes_back_as_it_went(datatype: str, shape: tuple[int, ...]) -> None:
    if datatype == "BYTES":
        array: Array = np.full(shape, b"some\0text", dtype=np.object_)
    else:
        array = np.ones(shape, NUMPY[datatype])
    outputs = outputs_of({"y": array}, {"y": datatype})
    memory = memoryview(bytearray(room(outputs)))
    (tensor,) = place(outputs, memory, 0, 0)
    data = memory[: tensor.size] if tensor.segment >= 0 else tensor.data
    assert data is not None
    back = as_array(data, datatype, tensor.shape)
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert (back == array).all()


def test_a_strided_array_travels_in_row_major_order() -> None:
    array = np.arange(12, dtype=np.int32).reshape(3, 4).T
    (tensor,) = place(outputs_of({"y": array}, {"y": "INT32"}), None, -1, 0)
    assert tensor.data is not None
    assert (as_array(tensor.data, "INT32", tensor.shape) == array).all()


def test_room_is_laid_out_as_the_reply_is_packed() -> None:
    memory = memoryview(bytearray(1 << 20))
    foreseen = [
        ("a", "UINT8", (LIMIT + 1,)),
        ("small", "FP32", (3,)),
        ("b", "FP32", (2, LIMIT)),
        ("c", "BF16", (LIMIT,)),
    ]
    rooms = lay_out(foreseen, memory)
    assert list(rooms) == ["a", "b", "c"]
    assert [(each.dtype, each.shape) for each in rooms.values()] == [
        (NUMPY["UINT8"], (LIMIT + 1,)),
        (NUMPY["FP32"], (2, LIMIT)),
        (NUMPY["BF16"], (LIMIT,)),
    ]
    for index, each in enumerate(rooms.values()):
        each[:] = index + 1
    arrays: dict[str, Array] = {"a": rooms["a"], "small": np.zeros(3, np.float32), "b": rooms["b"], "c": rooms["c"]}
    made = outputs_of(arrays, {"a": "UINT8", "small": "FP32", "b": "FP32", "c": "BF16"})
    before = bytes(memory)
    tensors = place(made, memory[: room(made)], 3, 0)
    assert bytes(memory) == before, "all lay there already"
    for tensor, each in zip((tensors[0], tensors[2], tensors[3]), rooms.values(), strict=True):
        data = memory[tensor.offset : tensor.offset + tensor.size]
        assert (as_array(data, tensor.datatype, tensor.shape) == each).all()


def test_room_ends_where_the_grant_ends_and_before_what_has_no_known_size() -> None:
    memory = memoryview(bytearray(3 * LIMIT))
    large = ("a", "UINT8", (2 * LIMIT,))
    assert list(lay_out([large, ("b", "UINT8", (2 * LIMIT,))], memory)) == ["a"]
    assert list(lay_out([("text", "BYTES", (1,)), large], memory)) == []
    assert list(lay_out([large], memory[: 2 * LIMIT - 1])) == []


@pytest.mark.parametrize("size", [LIMIT + 64, 2 * LOOK_BYTES])
@pytest.mark.parametrize("grown", [64, 100_000])
def test_an_output_that_grew_does_not_overwrite_the_ones_that_lie_behind_it(size: int, grown: int) -> None:
    memory = memoryview(bytearray(1 << 20))
    rooms = lay_out([(name, "UINT8", (size,)) for name in "abc"], memory)
    rooms["b"][:], rooms["c"][:] = 2, 3
    arrays: dict[str, Array] = {"a": np.full(size + grown, 1, np.uint8), "b": rooms["b"], "c": rooms["c"]}
    made = outputs_of(arrays, dict.fromkeys(arrays, "UINT8"))
    for number, tensor in enumerate(place(made, memory[: room(made)], 0, 0), 1):
        assert set(memory[tensor.offset : tensor.offset + tensor.size]) == {number}


def test_an_output_that_shrank_to_nothing_moves_what_lies_behind_it() -> None:
    memory = memoryview(bytearray(1 << 20))
    rooms = lay_out([("a", "UINT8", (LIMIT + 64,)), ("b", "UINT8", (100_000,))], memory)
    rooms["b"][:] = np.arange(100_000) % 251
    arrays: dict[str, Array] = {"a": np.zeros(1, np.uint8), "b": rooms["b"]}
    made = outputs_of(arrays, dict.fromkeys(arrays, "UINT8"))
    _, moved = place(made, memory[: room(made)], 0, 0)
    assert moved.offset == 0
    assert bytes(memory[:100_000]) == (np.arange(100_000) % 251).astype(np.uint8).tobytes()
