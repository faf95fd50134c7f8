"""Texts that differ in their numbers alone: where they are cut, and when that is sound."""

from __future__ import annotations

import json

import pytest

from mmsup.gateway.protocol.json_template import TEMPLATE_LIMIT_BYTES, input_names, parse_lists, split_template


def names(text: bytes) -> list[str] | None:
    parts = split_template(text)
    return None if parts is None else input_names(parts[0])


def test_texts_that_differ_in_their_numbers_have_the_same_skeleton() -> None:
    one, other = (
        json.dumps({"inputs": [{"name": "x", "shape": [2], "datatype": "FP32", "data": data}]}).encode()
        for data in ([1, 2], [3.5, -4e10])
    )
    first, second = split_template(one), split_template(other)
    assert first is not None
    assert second is not None
    assert first[0] == second[0]
    assert (first[1], second[1]) == ([b"1, 2"], [b"3.5, -40000000000.0"])
    assert input_names(first[0]) == ["x"]
    assert parse_lists(first[1]) == [[1, 2]]


def test_each_list_is_the_data_of_one_input_whatever_their_order() -> None:
    text = b'{"id": "a", "inputs": [{"data": [1], "name": "b"}, {"name": "a", "data" :\n[2, 3]}], "parameters": {}}'
    assert names(text) == ["b", "a"]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}",
        b'{"inputs": []}',
        b'{"inputs": [{"name": "x", "data": "text"}]}',
        b'{"inputs": [{"name": "x", "data": ["text"]}]}',
        b'{"inputs": [{"name": "x", "data": [[1, 2], [3, 4]]}]}',
        b'{"inputs": [{"name": "x", "data": [1',
        b'{"inputs": [{"name": "x", "data": [1]}], "pad": "%b"}' % (b"p" * TEMPLATE_LIMIT_BYTES),
    ],
)
def test_a_text_without_such_lists_or_with_too_much_around_them_is_read_whole(text: bytes) -> None:
    assert split_template(text) is None


@pytest.mark.parametrize(
    "text",
    [
        b'{"inputs": [{"name": "x", "data": [1]}], "outputs": [{"name": "y", "data": [1]}]}',
        b'{"inputs": [{"name": "x", "data": [1], "data": [2]}]}',
        b'{"inputs": [{"name": "x", "data": [1]}], "inputs": []}',
        b'{"inputs": [{"name": "x", "data": [1]}, {"name": "y", "parameters": {"binary_data_size": 4}}]}',
        b'{"inputs": [{"name": "x", "parameters": {"data": [1]}}]}',
        b'{"inputs": [{"name": 5, "data": [1]}]}',
        b'{"inputs": [{"data": [1]}]}',
        b'{"inputs": {"data": [1]}}',
        b'{"inputs": ["data", [1]], "data": [1]}',
        b'{"name": "\\"data\\": [1]", "data": [1]}',
        b'{"inputs": [{"name": "x\\\\"data": [1]}]}',
        b'["data", "data": [1]]',
        b'{"inputs": [{"name": "x", "data": [1]}]} trailing',
        b'{"inputs": [{"name": "x", "data": [1]',
    ],
)
def test_a_list_that_the_parser_does_not_see_as_the_data_of_one_input_is_none(text: bytes) -> None:
    parts = split_template(text)
    assert parts is not None
    assert input_names(parts[0]) is None


@pytest.mark.parametrize("bad", [b"1, 2,", b"1 2", b"NaN", b"01", b"+1", b"x", b",", b"1]"])
def test_what_is_no_json_has_no_values(bad: bytes) -> None:
    assert parse_lists([bad]) is None
