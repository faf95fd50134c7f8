"""Sizes in unbounded integers; BYTES elements with checked lengths."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsup.ipc.tensors import datatypes


def test_a_product_that_would_overflow_64_bits_is_exact() -> None:
    assert datatypes.size_bytes("FP64", (2**32, 2**32)) == 2**67


def test_a_rank_of_zero_has_one_element() -> None:
    assert datatypes.size_bytes("INT16", ()) == 2


def test_only_the_data_tells_the_size_of_bytes() -> None:
    assert datatypes.size_bytes("BYTES", (4,)) is None


@pytest.mark.parametrize("datatype", sorted(datatypes.ITEM_BYTES))
def test_configuration_names_come_back(datatype: str) -> None:
    assert datatypes.from_config_name(datatypes.config_name(datatype)) == datatype


@pytest.mark.parametrize("name", ["FP32", "TYPE_BYTES_", "TYPE_FP33", "", "TYPE_"])
def test_other_names_are_no_datatype(name: str) -> None:
    assert datatypes.from_config_name(name) is None


@given(st.lists(st.binary(max_size=40)))
def test_strings_come_back_as_they_went(strings: list[bytes]) -> None:
    assert list(datatypes.unpack_strings(datatypes.pack_strings(strings))) == strings


@given(st.binary(max_size=60))
def test_any_bytes_are_strings_or_a_value_error(data: bytes) -> None:
    try:
        strings = list(datatypes.unpack_strings(data))
    except ValueError:
        return
    assert datatypes.pack_strings(strings) == data


@pytest.mark.parametrize(
    ("declared", "shape", "fits"),
    [((-1, 3), (7, 3), True), ((-1, 3), (7, 4), False), ((), (), True), ((2,), (2, 1), False), ((-1,), (0,), True)],
)
def test_a_shape_fits_a_declared_one(declared: tuple[int, ...], shape: tuple[int, ...], fits: bool) -> None:
    assert datatypes.shape_matches(declared, shape) is fits
