"""Large texts: the same values as a plain parser reads, in pieces; no client can forge the places they go back to."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsup.gateway.protocol import json_document, json_tensors, large_json, large_json_runs
from mmsup.gateway.protocol.large_json_runs import NumberList
from mmsup.ipc.errors import CallerError
from mmsup.ipc.tensors.numpy_arrays import NUMPY

PADDING = {"padding": " " * json_document.LARGE_BYTES}


def large(value: Any) -> Any:
    """A value read by the way of large texts."""
    return json_document.parse_json(json.dumps({"value": value, **PADDING}).encode())["value"]


def plain(value: Any) -> Any:
    """Runs as lists."""
    if isinstance(value, NumberList):
        return value.tolist()
    if isinstance(value, list):
        return [plain(each) for each in value]
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return value


LONG = st.lists(st.integers(-(2**63), 2**64 - 1), min_size=60, max_size=90) | st.lists(
    st.floats(allow_nan=False) | st.integers(-100, 100), min_size=60, max_size=90
)
VALUE = st.recursive(
    LONG
    | st.none()
    | st.booleans()
    | st.text(max_size=6)
    | st.just("[1, 2]" * 100)
    | st.lists(st.booleans(), max_size=99),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(VALUE)
def test_a_large_text_holds_what_a_plain_parser_reads(value: Any) -> None:
    assert plain(large(value)) == value


def test_a_long_list_is_read_in_pieces_and_every_value_is_there() -> None:
    values = list(range(100_000))
    run = large(values)
    assert isinstance(run, NumberList)
    assert len(run.pieces) > 3
    assert run.tolist() == values


def test_words_for_what_json_cannot_say_are_read_in_pieces_too() -> None:
    run = large([float("nan"), float("inf"), 1.5] * 20_000)
    assert np.isnan(run.pieces[0][0])
    assert len(run) == 60_000


@pytest.mark.parametrize("hole", [b"1,,2", b"1,]", b",1", b"1 2", b"01", b"1e400", b"-"])
def test_a_list_that_is_no_json_is_refused_wherever_the_fault_is(hole: bytes) -> None:
    good = b"1," * 200_000
    with pytest.raises(CallerError, match="failed to parse the request JSON buffer"):
        json_document.parse_json(b'{"x":[' + good + hole + b"," + good + b"1]}")


def test_the_place_of_a_fault_is_told_in_the_whole_text() -> None:
    text = b'{"x":[' + b"1," * 200_000 + b"x,1]}"
    with pytest.raises(CallerError, match=f"at byte {text.index(b'x,1')}"):
        json_document.parse_json(text)


def test_numbers_within_a_string_stay_a_string() -> None:
    string = "[" + "1," * 500 + "1]"
    assert large({"a": string, "b": list(range(300))})["a"] == string


def test_a_string_cannot_be_made_to_stand_for_a_list() -> None:
    text = json.dumps({"a": "0" * 32 + "0", "b": list(range(300))}).encode()
    rest, found = large_json.extract_lists(memoryview(text), lambda raw, _at: json.loads(raw))
    assert len(found) == 1
    assert large_json_runs.restore_lists(json.loads(rest), found)["a"] == "0" * 33


def test_strings_beyond_the_bound_are_refused_before_they_are_built() -> None:
    with pytest.raises(CallerError, match="values, at most"):
        json_document.parse_json(b'["' + b'","' * (large_json.VALUE_LIMIT + 1) + b'"]')


# Runs as tensors.


def run_of(*pieces: Any) -> NumberList:
    return NumberList([np.array(each) for each in pieces])


@pytest.mark.parametrize("datatype", [name for name in NUMPY if name not in ("BYTES", "BOOL", "FP16", "BF16")])
def test_a_run_is_the_same_tensor_as_a_list(datatype: str) -> None:
    run = run_of([1, 2, 3], [4, 5])
    assert bytes(json_tensors.to_bytes(run, datatype, (5,))) == bytes(
        json_tensors.to_bytes(run.tolist(), datatype, (5,))
    )


def test_rows_that_are_runs_are_joined_if_they_are_nested_as_the_shape() -> None:
    rows = [run_of([1, 2], [3]), run_of([4, 5, 6])]
    assert bytes(json_tensors.to_bytes(rows, "UINT8", (2, 3))) == bytes(range(1, 7))
    assert bytes(json_tensors.to_bytes([rows[0], [4, 5, 6]], "UINT8", (2, 3))) == bytes(range(1, 7))
    for wrong in ((3, 2), (2, 3, 1), (1, 2, 3)):
        with pytest.raises(json_tensors.TensorDataError):
            json_tensors.to_bytes(rows, "UINT8", wrong)


@pytest.mark.parametrize(
    ("run", "datatype", "says"),
    [
        (run_of([1, 2]), "INT8", "needs 3 elements, data has 2"),
        (run_of([1, 2, 128]), "INT8", "128 is out of the range of INT8"),
        (run_of([1, 2, -1]), "UINT64", "-1 is out of the range of UINT64"),
        (run_of(np.array([1, 2, 2**64 - 1], np.uint64)), "INT64", f"{2**64 - 1} is out of the range"),
        (run_of([1.0, 2, 3]), "INT8", "is not an integer of INT8"),
        (run_of([1, 2, 1e39]), "FP32", r"1e\+39 is out of the range of FP32"),
        (run_of([True, False, True]), "FP32", "a truth value is not a number"),
        (run_of([1, 2, 3]), "BOOL", "a number is not true or false"),
        (run_of([1, 2, 3]), "BYTES", "a number is not a string"),
        (run_of([1, 2, 3]), "FP16", "send it as binary data"),
    ],
)
def test_a_run_that_does_not_fit_is_refused_as_a_list_is(run: NumberList, datatype: str, says: str) -> None:
    with pytest.raises(json_tensors.TensorDataError, match=says):
        json_tensors.to_bytes(run, datatype, (3,))


def test_a_long_tensor_is_written_as_one_list() -> None:
    values = np.arange(json_tensors.PIECE_ELEMENTS * 2 + 5, dtype=np.float32)
    values[-1] = np.nan
    text = json_tensors.to_json(memoryview(values.tobytes()), "FP32", "Y")
    np.testing.assert_array_equal(np.array(json.loads(text), np.float32), values)
