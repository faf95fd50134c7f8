"""Outputs on their way to a gateway."""

from __future__ import annotations

import numpy as np
import pytest

from mmsup.ipc.array import NUMPY, Array, as_array
from mmsup.ipc.codec import unpack_outline
from mmsup.ipc.specs import INLINE_LIMIT_BYTES, INLINE_TENSORS, TensorSpec
from mmsup.worker.results import Outlines, outputs_of, place, room

LIMIT = INLINE_LIMIT_BYTES


def test_small_outputs_travel_in_the_reply_and_need_no_room() -> None:
    outputs = outputs_of({"y": np.arange(LIMIT, dtype=np.uint8)})
    assert room(outputs) == 0
    assert place(outputs, None, -1, 0) == (bytes(np.arange(LIMIT, dtype=np.uint8)),)


def test_large_outputs_are_packed_at_64_byte_steps_in_their_order() -> None:
    arrays: dict[str, Array] = {
        "a": np.full(LIMIT + 1, 1, np.uint8),
        "small": np.zeros(3, np.uint8),
        "b": np.full((2, LIMIT), 2, np.uint8),
    }
    outputs = outputs_of(arrays)
    step = LIMIT + 64
    assert room(outputs) == step + 2 * LIMIT
    memory = bytearray(room(outputs))
    first, small, second = place(outputs, memoryview(memory), 5, 1024)
    assert first == (5, 1024, LIMIT + 1)
    assert small == bytes(3)
    assert second == (5, 1024 + step, 2 * LIMIT)
    assert memory[: LIMIT + 1] == b"\1" * (LIMIT + 1)
    assert memory[step:] == b"\2" * (2 * LIMIT)


def test_of_very_many_small_outputs_only_so_many_travel_in_the_reply() -> None:
    outputs = outputs_of({f"y{number}": np.full(3, number, np.uint8) for number in range(INLINE_TENSORS + 2)})
    assert room(outputs) == 2 * 64
    memory = bytearray(room(outputs))
    places = place(outputs, memoryview(memory), 0, 0)
    assert places[-2:] == ((0, 0, 3), (0, 64, 3))
    assert memory[64:67] == bytes([INLINE_TENSORS + 1] * 3)


@pytest.mark.parametrize("datatype", sorted(NUMPY))
@pytest.mark.parametrize("shape", [(3, 2), (0, 4), (), (40, 60)])
def test_an_array_comes_back_as_it_went(datatype: str, shape: tuple[int, ...]) -> None:
    if datatype == "BYTES":
        array: Array = np.full(shape, b"some\0text", dtype=np.object_)
    else:
        array = np.ones(shape, NUMPY[datatype])
    outputs = outputs_of({"y": array})
    memory = memoryview(bytearray(room(outputs)))
    (where,) = place(outputs, memory if room(outputs) else None, 0, 0)
    data = memory[: where[2]] if isinstance(where, tuple) else where
    back = as_array(data, datatype, outputs[0][1])
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert (back == array).all()


def test_a_strided_array_travels_in_row_major_order() -> None:
    array = np.arange(12, dtype=np.int32).reshape(3, 4).T
    (where,) = place(outputs_of({"y": array}), None, -1, 0)
    assert not isinstance(where, tuple)
    assert (as_array(where, "INT32", array.shape) == array).all()


def test_results_that_look_alike_have_the_same_words() -> None:
    outlines = Outlines({"y": "UINT8", "z": "FP32"})
    one, other = (outputs_of({"y": np.full(3, each, np.uint8)}) for each in (1, 2))
    assert outlines.words(one) is outlines.words(other)
    assert unpack_outline(outlines.words(one)).outputs == (TensorSpec("y", "UINT8", (3,)),)
    assert outlines.words(outputs_of({"y": np.zeros(4, np.uint8)})) != outlines.words(one)
