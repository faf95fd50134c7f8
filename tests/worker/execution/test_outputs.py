"""Outputs on their way to a gateway."""

from __future__ import annotations

import numpy as np
import pytest

from mmsup.ipc.messages.data import TensorLocation
from mmsup.ipc.specs import INLINE_LIMIT_BYTES, INLINE_TENSORS, TensorSpec
from mmsup.ipc.tensors.numpy_arrays import NUMPY, Array, as_array
from mmsup.ipc.transport.codec import unpack_reply_signature
from mmsup.worker.execution.outputs import (
    ADDRESS_CHECK_BYTES,
    ReplySignatureCache,
    buffer_bytes,
    encode_outputs,
    output_buffers,
    place_outputs,
)

LIMIT = INLINE_LIMIT_BYTES


def test_small_outputs_travel_in_the_reply_and_need_no_room() -> None:
    outputs = encode_outputs({"y": np.arange(LIMIT, dtype=np.uint8)})
    assert buffer_bytes(outputs) == 0
    assert place_outputs(outputs, None, -1, 0) == (bytes(np.arange(LIMIT, dtype=np.uint8)),)


def test_large_outputs_are_packed_at_64_byte_steps_in_their_order() -> None:
    arrays: dict[str, Array] = {
        "a": np.full(LIMIT + 1, 1, np.uint8),
        "small": np.zeros(3, np.uint8),
        "b": np.full((2, LIMIT), 2, np.uint8),
    }
    outputs = encode_outputs(arrays)
    step = LIMIT + 64
    assert buffer_bytes(outputs) == step + 2 * LIMIT
    memory = bytearray(buffer_bytes(outputs))
    first, small, second = place_outputs(outputs, memoryview(memory), 5, 1024)
    assert first == (5, 1024, LIMIT + 1)
    assert small == bytes(3)
    assert second == (5, 1024 + step, 2 * LIMIT)
    assert memory[: LIMIT + 1] == b"\1" * (LIMIT + 1)
    assert memory[step:] == b"\2" * (2 * LIMIT)


def test_of_very_many_small_outputs_only_so_many_travel_in_the_reply() -> None:
    outputs = encode_outputs({f"y{number}": np.full(3, number, np.uint8) for number in range(INLINE_TENSORS + 2)})
    assert buffer_bytes(outputs) == 2 * 64
    memory = bytearray(buffer_bytes(outputs))
    places = place_outputs(outputs, memoryview(memory), 0, 0)
    assert places[-2:] == ((0, 0, 3), (0, 64, 3))
    assert memory[64:67] == bytes([INLINE_TENSORS + 1] * 3)


@pytest.mark.parametrize("datatype", sorted(NUMPY))
@pytest.mark.parametrize("shape", [(3, 2), (0, 4), (), (40, 60)])
def test_an_array_comes_back_as_it_went(datatype: str, shape: tuple[int, ...]) -> None:
    if datatype == "BYTES":
        array: Array = np.full(shape, b"some\0text", dtype=np.object_)
    else:
        array = np.ones(shape, NUMPY[datatype])
    outputs = encode_outputs({"y": array})
    memory = memoryview(bytearray(buffer_bytes(outputs)))
    (where,) = place_outputs(outputs, memory if buffer_bytes(outputs) else None, 0, 0)
    data = memory[: where[2]] if isinstance(where, tuple) else where
    back = as_array(data, datatype, outputs[0][1])
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert (back == array).all()


def test_a_strided_array_travels_in_row_major_order() -> None:
    array = np.arange(12, dtype=np.int32).reshape(3, 4).T
    (where,) = place_outputs(encode_outputs({"y": array}), None, -1, 0)
    assert not isinstance(where, tuple)
    assert (as_array(where, "INT32", array.shape) == array).all()


def test_results_that_look_alike_have_the_same_words() -> None:
    outlines = ReplySignatureCache({"y": "UINT8", "z": "FP32"})
    one, other = (encode_outputs({"y": np.full(3, each, np.uint8)}) for each in (1, 2))
    assert outlines.signature(one) is outlines.signature(other)
    assert unpack_reply_signature(outlines.signature(one)).outputs == (TensorSpec("y", "UINT8", (3,)),)
    assert outlines.signature(encode_outputs({"y": np.zeros(4, np.uint8)})) != outlines.signature(one)


def at(where: TensorLocation, memory: memoryview) -> memoryview:
    """The bytes at a place in granted memory."""
    assert isinstance(where, tuple)
    return memory[where[1] : where[1] + where[2]]


def test_room_is_laid_out_as_the_reply_is_packed() -> None:
    memory = memoryview(bytearray(1 << 20))
    foreseen = [
        ("a", "UINT8", (LIMIT + 1,)),
        ("small", "FP32", (3,)),
        ("b", "FP32", (2, LIMIT)),
        ("c", "BF16", (LIMIT,)),
    ]
    rooms = output_buffers(foreseen, memory)
    assert list(rooms) == ["a", "b", "c"]
    assert [(each.dtype, each.shape) for each in rooms.values()] == [
        (NUMPY["UINT8"], (LIMIT + 1,)),
        (NUMPY["FP32"], (2, LIMIT)),
        (NUMPY["BF16"], (LIMIT,)),
    ]
    for index, each in enumerate(rooms.values()):
        each[:] = index + 1
    arrays: dict[str, Array] = {"a": rooms["a"], "small": np.zeros(3, np.float32), "b": rooms["b"], "c": rooms["c"]}
    made = encode_outputs(arrays)
    before = bytes(memory)
    places = place_outputs(made, memory[: buffer_bytes(made)], 3, 0)
    assert bytes(memory) == before, "all lay there already"
    for where, (name, datatype, shape) in zip(places, foreseen, strict=True):
        if name in rooms:
            assert (as_array(at(where, memory), datatype, shape) == rooms[name]).all()


def test_room_ends_where_the_grant_ends_and_before_what_has_no_known_size() -> None:
    memory = memoryview(bytearray(3 * LIMIT))
    large = ("a", "UINT8", (2 * LIMIT,))
    assert list(output_buffers([large, ("b", "UINT8", (2 * LIMIT,))], memory)) == ["a"]
    assert list(output_buffers([("text", "BYTES", (1,)), large], memory)) == []
    assert list(output_buffers([large], memory[: 2 * LIMIT - 1])) == []


@pytest.mark.parametrize("size", [LIMIT + 64, 2 * ADDRESS_CHECK_BYTES])
@pytest.mark.parametrize("grown", [64, 100_000])
def test_an_output_that_grew_does_not_overwrite_the_ones_that_lie_behind_it(size: int, grown: int) -> None:
    memory = memoryview(bytearray(1 << 20))
    rooms = output_buffers([(name, "UINT8", (size,)) for name in "abc"], memory)
    rooms["b"][:], rooms["c"][:] = 2, 3
    arrays: dict[str, Array] = {"a": np.full(size + grown, 1, np.uint8), "b": rooms["b"], "c": rooms["c"]}
    made = encode_outputs(arrays)
    for number, where in enumerate(place_outputs(made, memory[: buffer_bytes(made)], 0, 0), 1):
        assert set(at(where, memory)) == {number}


def test_an_output_that_shrank_to_nothing_moves_what_lies_behind_it() -> None:
    memory = memoryview(bytearray(1 << 20))
    rooms = output_buffers([("a", "UINT8", (LIMIT + 64,)), ("b", "UINT8", (100_000,))], memory)
    rooms["b"][:] = np.arange(100_000) % 251
    arrays: dict[str, Array] = {"a": np.zeros(1, np.uint8), "b": rooms["b"]}
    made = encode_outputs(arrays)
    _, moved = place_outputs(made, memory[: buffer_bytes(made)], 0, 0)
    assert moved == (0, 0, 100_000)
    assert bytes(memory[:100_000]) == (np.arange(100_000) % 251).astype(np.uint8).tobytes()
