"""JSON of clients: bounded before it is built, words for what JSON cannot say."""

from __future__ import annotations

import contextlib
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsup.gateway.protocol import json_document
from mmsup.ipc.errors import CallerError


@pytest.mark.parametrize(
    "text",
    [
        b"", b"  ", b"{", b"[1,]", b"{'a':1}", b"\xff", b'"\\ud800"', b"nul", b"1e400", b"[1,1e400,NaN]", b"NaNs",
        b"[Infinity,", b"[NaN,\xff]", b"[NaN," + b"9" * 5000 + b"]", b'{"a":1}x',
    ],
)  # fmt: skip
def test_what_is_no_json_is_refused_as_the_clients_fault(text: bytes) -> None:
    with pytest.raises(CallerError, match="failed to parse the request JSON buffer: "):
        json_document.parse_json(text)


def test_nan_and_infinities_are_read_as_bare_words() -> None:
    nan, infinity, minus = json_document.parse_json(b"[NaN, Infinity, -Infinity]")
    assert math.isnan(nan)
    assert (infinity, minus) == (math.inf, -math.inf)


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_depth_64_is_read_and_65_is_not(opening: bytes) -> None:
    closing = b"]" if opening == b"[" else b"}"
    json_document.parse_json(opening * 63 + b"[]" + closing * 63)
    with pytest.raises(CallerError, match="nested 65 deep"):
        json_document.parse_json(opening * 64 + b"[]" + closing * 64)


@pytest.mark.parametrize("depth", [100, 1025, 100_000])
def test_depth_is_refused_before_a_parser_meets_it(depth: int) -> None:
    with pytest.raises(CallerError, match=r"deep|lists and objects"):
        json_document.parse_json(b"[" * depth + b"]" * depth)


def test_brackets_in_strings_are_no_depth() -> None:
    text = '["' + "[" * 200 + '", "\\"' + "{" * 200 + '"]'
    assert json_document.parse_json(text.encode()) == ["[" * 200, '"' + "{" * 200]


def test_many_lists_side_by_side_are_not_deep() -> None:
    assert len(json_document.parse_json(b"[" + b"[1]," * 1000 + b"[1]]")) == 1001


def test_more_containers_than_the_bound_are_refused() -> None:
    with pytest.raises(CallerError, match="at most 65536"):
        json_document.parse_json(b"[" + b"[]," * 70_000 + b"[]]")


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_value_or_a_callers_error(text: bytes) -> None:
    with contextlib.suppress(CallerError):
        json_document.parse_json(text)
