"""JSON templates: where a text is split, and when that is sound."""

from __future__ import annotations

import json

import pytest

from mmsup.gateway.protocol.json_template import (
    TEMPLATE_LIMIT_BYTES,
    cut_id,
    input_names,
    parse_lists,
    split_template,
    takes_id,
    text_around_list,
)


def names(text: bytes) -> list[str] | None:
    parts = split_template(text)
    return None if parts is None else input_names(parts[0])


def test_texts_that_differ_in_their_numbers_have_the_same_template() -> None:
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
def test_a_text_without_lists_or_with_a_long_template_has_none(text: bytes) -> None:
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
def test_a_list_that_is_not_the_data_of_one_input_has_no_input_name(text: bytes) -> None:
    parts = split_template(text)
    assert parts is not None
    assert input_names(parts[0]) is None


@pytest.mark.parametrize("bad", [b"1, 2,", b"1 2", b"NaN", b"01", b"+1", b"x", b",", b"1]"])
def test_invalid_json_has_no_values(bad: bytes) -> None:
    assert parse_lists([bad]) is None


@pytest.mark.parametrize(
    ("text", "json_id"),
    [
        (b'{"id":"a-1","inputs":[]}', "a-1"),
        (b'{"id": "a.b:c/d=e+f_g", "inputs": []}', "a.b:c/d=e+f_g"),
        (b'{"id":"' + b"x" * 64 + b'","inputs":[]}', "x" * 64),
        (b'{"id":"' + b"x" * 65 + b'","inputs":[]}', ""),
        (b'{"id":"","inputs":[]}', ""),
        (b'{"id":"a b","inputs":[]}', ""),
        (b'{"id":"a\\n","inputs":[]}', ""),
        (b'{"id":"\xc3\xa4","inputs":[]}', ""),
        (b'{"id":"a"}', ""),
        (b'{"id":7,"inputs":[]}', ""),
        (b'{"inputs":[],"id":"a"}', ""),
        (b' {"id":"a","inputs":[]}', ""),
    ],
)
def test_an_id_of_the_plain_form_is_cut_out(text: bytes, json_id: str) -> None:
    found, rest = cut_id(text)
    assert found == json_id
    assert rest == (text.replace(json_id.encode(), bytes(len(json_id)), 1) if json_id else text)
    assert takes_id(text) == bool(json_id)


@pytest.mark.parametrize(
    "text", [b'{"id":"a","inputs":[],"id":"a"}', b'{"id":"a","\\u0069d":"b"}', b'{"id":"a","inputs":[']
)
def test_an_id_that_the_parser_does_not_take_is_noticed(text: bytes) -> None:
    assert cut_id(text)[0] == "a"
    assert not takes_id(text)


def test_the_text_around_the_only_list_and_none_around_two() -> None:
    assert text_around_list(b'{"data" : [1, 2], "x": [3]}') == (b'{"data" : ', b', "x": [3]}')
    assert text_around_list(b'{"data":[1],"y":{"data":[2]}}') is None
    assert text_around_list(b'{"x":[1]}') is None
