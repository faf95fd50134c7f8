"""Outputs in a reply and in a granted buffer."""

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
    lay_out_buffers,
    place_outputs,
)

LIMIT = INLINE_LIMIT_BYTES


def test_small_outputs_travel_in_the_reply_and_need_no_buffer() -> None:
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


def test_of_very_many_small_outputs_only_some_travel_in_the_reply() -> None:
    outputs = encode_outputs({f"y{number}": np.full(3, number, np.uint8) for number in range(INLINE_TENSORS + 2)})
    assert buffer_bytes(outputs) == 2 * 64
    memory = bytearray(buffer_bytes(outputs))
    locations = place_outputs(outputs, memoryview(memory), 0, 0)
    assert locations[-2:] == ((0, 0, 3), (0, 64, 3))
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
    (location,) = place_outputs(outputs, memory if buffer_bytes(outputs) else None, 0, 0)
    data = memory[: location[2]] if isinstance(location, tuple) else location
    back = as_array(data, datatype, outputs[0][1])
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert (back == array).all()


def test_a_strided_array_travels_in_row_major_order() -> None:
    array = np.arange(12, dtype=np.int32).reshape(3, 4).T
    (location,) = place_outputs(encode_outputs({"y": array}), None, -1, 0)
    assert not isinstance(location, tuple)
    assert (as_array(location, "INT32", array.shape) == array).all()


def test_results_that_are_alike_have_the_same_signature() -> None:
    signatures = ReplySignatureCache({"y": "UINT8", "z": "FP32"})
    one, other = (encode_outputs({"y": np.full(3, each, np.uint8)}) for each in (1, 2))
    assert signatures.signature(one) is signatures.signature(other)
    assert unpack_reply_signature(signatures.signature(one)).outputs == (TensorSpec("y", "UINT8", (3,)),)
    assert signatures.signature(encode_outputs({"y": np.zeros(4, np.uint8)})) != signatures.signature(one)


def at(location: TensorLocation, memory: memoryview) -> memoryview:
    """The bytes at a location in granted memory."""
    assert isinstance(location, tuple)
    return memory[location[1] : location[1] + location[2]]


def test_buffers_are_laid_out_as_outputs_are_placed() -> None:
    memory = memoryview(bytearray(1 << 20))
    predicted = [
        ("a", "UINT8", (LIMIT + 1,)),
        ("small", "FP32", (3,)),
        ("b", "FP32", (2, LIMIT)),
        ("c", "BF16", (LIMIT,)),
    ]
    buffers = lay_out_buffers(predicted, memory)
    assert list(buffers) == ["a", "b", "c"]
    assert [(each.dtype, each.shape) for each in buffers.values()] == [
        (NUMPY["UINT8"], (LIMIT + 1,)),
        (NUMPY["FP32"], (2, LIMIT)),
        (NUMPY["BF16"], (LIMIT,)),
    ]
    for index, each in enumerate(buffers.values()):
        each[:] = index + 1
    arrays: dict[str, Array] = {
        "a": buffers["a"],
        "small": np.zeros(3, np.float32),
        "b": buffers["b"],
        "c": buffers["c"],
    }
    made = encode_outputs(arrays)
    before = bytes(memory)
    locations = place_outputs(made, memory[: buffer_bytes(made)], 3, 0)
    assert bytes(memory) == before, "all were there already"
    for location, (name, datatype, shape) in zip(locations, predicted, strict=True):
        if name in buffers:
            assert (as_array(at(location, memory), datatype, shape) == buffers[name]).all()


def test_the_layout_ends_with_the_granted_memory_and_before_an_output_of_unknown_size() -> None:
    memory = memoryview(bytearray(3 * LIMIT))
    large = ("a", "UINT8", (2 * LIMIT,))
    assert list(lay_out_buffers([large, ("b", "UINT8", (2 * LIMIT,))], memory)) == ["a"]
    assert list(lay_out_buffers([("text", "BYTES", (1,)), large], memory)) == []
    assert list(lay_out_buffers([large], memory[: 2 * LIMIT - 1])) == []


@pytest.mark.parametrize("size", [LIMIT + 64, 2 * ADDRESS_CHECK_BYTES])
@pytest.mark.parametrize("grown", [64, 100_000])
def test_an_output_that_grew_does_not_overwrite_those_that_follow_it(size: int, grown: int) -> None:
    memory = memoryview(bytearray(1 << 20))
    buffers = lay_out_buffers([(name, "UINT8", (size,)) for name in "abc"], memory)
    buffers["b"][:], buffers["c"][:] = 2, 3
    arrays: dict[str, Array] = {"a": np.full(size + grown, 1, np.uint8), "b": buffers["b"], "c": buffers["c"]}
    made = encode_outputs(arrays)
    for number, location in enumerate(place_outputs(made, memory[: buffer_bytes(made)], 0, 0), 1):
        assert set(at(location, memory)) == {number}


def test_an_output_that_shrank_moves_those_that_follow_it() -> None:
    memory = memoryview(bytearray(1 << 20))
    buffers = lay_out_buffers([("a", "UINT8", (LIMIT + 64,)), ("b", "UINT8", (100_000,))], memory)
    buffers["b"][:] = np.arange(100_000) % 251
    arrays: dict[str, Array] = {"a": np.zeros(1, np.uint8), "b": buffers["b"]}
    made = encode_outputs(arrays)
    _, moved = place_outputs(made, memory[: buffer_bytes(made)], 0, 0)
    assert moved == (0, 0, 100_000)
    assert bytes(memory[:100_000]) == (np.arange(100_000) % 251).astype(np.uint8).tobytes()
