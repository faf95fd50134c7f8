"""Arrays over memory, and back to bytes."""

from __future__ import annotations

import numpy as np
import pytest

from mmsup.ipc.tensors.datatypes import ITEM_BYTES
from mmsup.ipc.tensors.numpy_arrays import NUMPY, as_array, as_bytes, datatype_of


@pytest.mark.parametrize("datatype", sorted(set(NUMPY) - {"BYTES"}))
def test_each_datatype_round_trips_byte_for_byte(datatype: str) -> None:
    data = bytes(range(6 * ITEM_BYTES[datatype])) if datatype != "BOOL" else bytes([0, 1, 1, 0, 0, 1])
    array = as_array(data, datatype, (2, 3))
    assert array.shape == (2, 3)
    assert datatype_of(array) == datatype
    assert bytes(as_bytes(array)) == data


def test_an_aligned_tensor_is_a_view_and_a_misaligned_one_a_copy() -> None:
    memory = np.zeros(64, dtype=np.uint8)
    whole = memory.data
    assert np.shares_memory(as_array(whole[8:24], "FP32", (4,)), memory)
    assert not np.shares_memory(as_array(whole[9:25], "FP32", (4,)), memory)


def test_strings_and_text_become_bytes_elements() -> None:
    array = np.array([["a", "bc"]], dtype=np.object_)
    again = as_array(as_bytes(array), "BYTES", (1, 2))
    assert again.tolist() == [[b"a", b"bc"]]
    assert bytes(as_bytes(np.array(["a", "bc"]))) == bytes(as_bytes(np.array([b"a", b"bc"], dtype=np.object_)))


@pytest.mark.parametrize(("datatype", "shape"), [("FP32", (3,)), ("BYTES", (2,)), ("INT64", (1, 1))])
def test_bytes_that_do_not_fill_the_shape_are_a_value_error(datatype: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r".+"):
        as_array(b"\1\0\0\0a", datatype, shape)


def test_a_transposed_array_is_encoded_row_major() -> None:
    array = np.arange(6, dtype=np.int16).reshape(2, 3).T
    assert bytes(as_bytes(array)) == np.ascontiguousarray(array).tobytes()


def test_an_array_of_an_odd_type_has_no_datatype() -> None:
    assert datatype_of(np.zeros(2, dtype=np.complex64)) is None
