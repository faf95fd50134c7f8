"""Outputs on their way to a gateway."""

from __future__ import annotations

import numpy as np
import pytest

from mmsup.ipc.array import NUMPY, Array, as_array
from mmsup.ipc.specs import INLINE_LIMIT_BYTES
from mmsup.worker.results import outputs_of, place, room

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
