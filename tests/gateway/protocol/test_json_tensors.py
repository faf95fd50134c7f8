"""JSON tensors: exact both ways, refused where a value does not fit."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsup.gateway.protocol import json_document, json_tensors
from mmsup.ipc.errors import CallerError
from mmsup.ipc.tensors.datatypes import pack_strings
from mmsup.ipc.tensors.numpy_arrays import NUMPY

INTEGERS = [name for name in NUMPY if name.removeprefix("U").startswith("INT")]


@pytest.mark.parametrize("datatype", INTEGERS)
def test_integers_reach_both_ends_of_their_range_and_no_further(datatype: str) -> None:
    limits = np.iinfo(NUMPY[datatype])
    low, high = int(limits.min), int(limits.max)
    data = json_tensors.to_bytes([low, high], datatype, (2,))
    assert np.frombuffer(data, NUMPY[datatype]).tolist() == [low, high]
    for outside in (low - 1, high + 1):
        with pytest.raises(json_tensors.TensorDataError, match=f"{outside} is out of the range of {datatype}"):
            json_tensors.to_bytes([0, outside], datatype, (2,))


@pytest.mark.parametrize("wrong", [1.0, 1.5, True, None, "1", [1], {}, float("nan")])
@pytest.mark.parametrize("datatype", ["INT32", "UINT64"])
def test_other_values_are_no_integers(wrong: Any, datatype: str) -> None:
    with pytest.raises(json_tensors.TensorDataError, match="is not an integer"):
        json_tensors.to_bytes([0, wrong], datatype, (2,))


@pytest.mark.parametrize("wrong", [0, 1, None, "true"])
def test_only_true_and_false_are_bool(wrong: Any) -> None:
    assert json_tensors.to_bytes([True, False], "BOOL", (2,)) == b"\1\0"
    with pytest.raises(json_tensors.TensorDataError, match="is not true or false"):
        json_tensors.to_bytes([True, wrong], "BOOL", (2,))


@pytest.mark.parametrize("wrong", [True, None, "1", [1.0]])
def test_other_values_are_no_floats(wrong: Any) -> None:
    with pytest.raises(json_tensors.TensorDataError, match="is not a number"):
        json_tensors.to_bytes([0.5, wrong], "FP32", (2,))


def test_a_number_too_large_for_fp32_is_refused_but_infinity_is_not() -> None:
    json_tensors.to_bytes([float("inf"), float("-inf"), 3.4e38], "FP32", (3,))
    with pytest.raises(json_tensors.TensorDataError, match=r"1e\+39 is out of the range of FP32"):
        json_tensors.to_bytes([float("inf"), 1e39], "FP32", (2,))
    with pytest.raises(json_tensors.TensorDataError, match="out of the range"):
        json_tensors.to_bytes([10**400], "FP64", (1,))


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_fp16_and_bf16_are_binary_only(datatype: str) -> None:
    with pytest.raises(json_tensors.TensorDataError, match="send it as binary data"):
        json_tensors.to_bytes([1.0], datatype, (1,))


def test_strings_are_utf8_with_their_lengths() -> None:
    assert json_tensors.to_bytes(["a", "ä", ""], "BYTES", (3,)) == pack_strings([b"a", "ä".encode(), b""])
    with pytest.raises(json_tensors.TensorDataError, match="1 is not a string"):
        json_tensors.to_bytes(["a", 1], "BYTES", (2,))
    with pytest.raises(json_tensors.TensorDataError, match="surrogate"):
        json_tensors.to_bytes(["\ud800"], "BYTES", (1,))


@pytest.mark.parametrize(
    ("data", "shape"),
    [
        ([1, 2, 3, 4], (2, 2)),
        ([[1, 2], [3, 4]], (2, 2)),
        ([[[1], [2]], [[3], [4]]], (2, 2, 1)),
        (7, ()),
        ([7], ()),
        ([], (0,)),
        ([[], []], (2, 0)),
        ([], (0, 3)),
    ],
)
def test_data_is_flat_or_nested_as_the_shape(data: Any, shape: tuple[int, ...]) -> None:
    assert len(json_tensors.to_bytes(data, "UINT8", shape)) == np.prod(shape, dtype=int)


@pytest.mark.parametrize(
    ("data", "shape"),
    [
        ([1, 2, 3], (2, 2)),
        ([[1, 2], [3]], (2, 2)),
        ([[1, 2], 3], (2, 2)),
        ([[1, 2, 3, 4]], (2, 2)),
        ([[[1, 2], [3, 4]]], (2, 2)),
        ([1], (0,)),
        (1, (1,)),
        ("1", (1,)),
        (None, (1,)),
        ({}, (1,)),
        ([], ()),
    ],
)
def test_data_of_another_form_is_refused(data: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(json_tensors.TensorDataError):
        json_tensors.to_bytes(data, "UINT8", shape)


@pytest.mark.parametrize(
    "datatype", [name for name in NUMPY if name not in ("BYTES", "BOOL", *json_tensors.BINARY_ONLY)]
)
@settings(max_examples=40, deadline=None)
@given(content=st.data())
def test_numbers_round_trip(datatype: str, content: st.DataObject) -> None:
    dtype = NUMPY[datatype]
    raw = content.draw(st.binary(min_size=dtype.itemsize, max_size=dtype.itemsize * 9))
    data = raw[: len(raw) // dtype.itemsize * dtype.itemsize]
    values = np.frombuffer(data, dtype)
    text = json_tensors.to_json(memoryview(data), datatype, "Y")
    again = np.frombuffer(json_tensors.to_bytes(json_document.parse_json(text), datatype, values.shape), dtype)
    np.testing.assert_array_equal(again, values)


def test_nan_and_infinities_are_written_as_bare_words() -> None:
    values = np.array([1.5, np.nan, np.inf, -np.inf], np.float32)
    text = json_tensors.to_json(memoryview(values.tobytes()), "FP32", "Y")
    assert text == b"[1.5,NaN,Infinity,-Infinity]"
    assert json.loads(text)[2] == float("inf")


def test_fp32_is_written_with_no_more_digits_than_it_has() -> None:
    assert json_tensors.to_json(memoryview(struct.pack("<f", 0.1)), "FP32", "Y") == b"[0.1]"


def test_a_misaligned_tensor_is_written_too() -> None:
    space = memoryview(b"\0" + struct.pack("<2d", 0.1, 2.5))
    assert json_tensors.to_json(space[1:], "FP64", "Y") == b"[0.1,2.5]"


def test_an_output_that_is_not_utf8_is_refused_with_its_name_and_the_alternative() -> None:
    with pytest.raises(CallerError, match=r"output 'Y' .* ask for binary_data"):
        json_tensors.to_json(memoryview(pack_strings([b"\xff"])), "BYTES", "Y")


@given(
    st.sampled_from([*INTEGERS, "FP32", "FP64"]),
    st.lists(
        st.one_of(st.integers(-(1 << 70), 1 << 70), st.integers(-200, 300), st.floats(allow_nan=False)), max_size=5
    ),
    st.integers(0, 5),
)
@settings(max_examples=300, deadline=None)
def test_a_packer_gives_the_same_bytes_or_none(datatype: str, values: list[Any], count: int) -> None:
    packer = json_tensors.number_packer(datatype, (count,))
    assert packer is not None
    try:
        expected = bytes(json_tensors.to_bytes(values, datatype, (count,)))
    except json_tensors.TensorDataError:
        with pytest.raises((struct.error, OverflowError)):
            packer.pack(*values)
    else:
        assert packer.pack(*values) == expected


@pytest.mark.parametrize("datatype", ["BOOL", "BYTES", "FP16", "BF16"])
def test_what_has_no_numbers_in_json_has_no_packer(datatype: str) -> None:
    assert json_tensors.number_packer(datatype, (1,)) is None


@pytest.mark.parametrize("datatype", [*INTEGERS, "FP32", "FP64", "BOOL"])
def test_bytes_and_views_of_them_are_written_alike(datatype: str) -> None:
    data = np.array([0, 1, 1, 0], NUMPY[datatype]).tobytes()
    assert json_tensors.to_json(data, datatype, "y") == json_tensors.to_json(memoryview(data), datatype, "y")
    if datatype.startswith("FP"):
        odd = np.array([1.5, float("nan"), float("-inf")], NUMPY[datatype]).tobytes()
        assert json_tensors.to_json(odd, datatype, "y") == b"[1.5,NaN,-Infinity]"
