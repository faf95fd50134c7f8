"""KServe's first protocol as the second one: rows in, rows out."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from fake_router import metadata
from mmsup.gateway.api import predictions
from mmsup.gateway.protocol import infer_request, json_document
from mmsup.gateway.protocol.binary_tensors import Blobs
from mmsup.gateway.protocol.inference_job import InputTensor, OutputTensor
from mmsup.ipc.errors import CallerError
from mmsup.ipc.specs import Metadata
from mmsup.ipc.tensors.datatypes import pack_strings

ONE = metadata(("x", "FP32", (2,)), max_batch_size=8)
TWO = metadata(("x", "FP32", (2,)), ("s", "BYTES", (1,)), max_batch_size=8)
TEXT = metadata(("s", "BYTES", (1,)), max_batch_size=8)
PLAIN = metadata(("x", "INT64", (-1, 2)))
FIXED = metadata(("x", "INT64", (2,)))


def read(document: Any, described: Metadata) -> list[InputTensor]:
    parsed = json_document.parse_json(json.dumps(document).encode())
    made, rows = predictions.infer_document(parsed, "M", described)
    request = infer_request.parse_request(made, "M", described, Blobs(memoryview(b""), 0, 0))
    assert all(each.shape[0] == rows for each in request.inputs)
    return request.inputs


def floats(*values: float) -> bytes:
    return np.array(values, np.float32).tobytes()


def test_of_one_input_an_instance_is_its_row() -> None:
    for instances in ([[1, 2], [3, 4]], [{"x": [1, 2]}, {"x": [3, 4]}]):
        (given,) = read({"instances": instances}, ONE)
        assert (given.name, given.shape, bytes(given.data or b"")) == ("x", (2, 2), floats(1, 2, 3, 4))
    (given,) = read({"instances": [[1, 2]]}, PLAIN)
    assert (given.datatype, given.shape) == ("INT64", (1, 2))
    assert read({"instances": [1, 2]}, FIXED)[0].shape == (2,), "as many instances as its only axis has"


def test_of_several_inputs_an_instance_is_an_object() -> None:
    given = read({"instances": [{"x": [1, 2], "s": "a"}, {"s": "b", "x": [3, 4]}]}, TWO)
    assert [(each.name, each.shape) for each in given] == [("x", (2, 2)), ("s", (2, 1))]
    assert bytes(given[1].data or b"") == pack_strings([b"a", b"b"])


def test_many_rows_of_many_numbers_are_the_same() -> None:
    rows = np.arange(60000, dtype=np.float32).reshape(-1, 2)
    (given,) = read({"instances": rows.tolist()}, metadata(("x", "FP32", (2,)), max_batch_size=1 << 20))
    assert bytes(given.data or b"") == rows.tobytes()
    wide = rows.reshape(2, -1)
    (given,) = read({"instances": wide.tolist()}, metadata(("x", "FP32", (-1,)), max_batch_size=4))
    assert bytes(given.data or b"") == wide.tobytes()
    numbers = list(range(60000))
    (given,) = read({"instances": numbers}, metadata(("x", "INT64", (1,)), max_batch_size=1 << 20))
    assert given.shape == (60000, 1)


def test_bytes_that_are_no_text_come_in_base64() -> None:
    (given,) = read({"instances": [{"b64": "AP8="}, {"b64": ""}]}, TEXT)
    assert (given.shape, bytes(given.data or b"")) == ((2, 1), pack_strings([b"\0\xff", b""]))


@pytest.mark.parametrize(
    ("document", "described", "says"),
    [
        ([], ONE, "it is not an object"),
        ({}, ONE, "'instances' must be a list with one element or more"),
        ({"instances": []}, ONE, "'instances' must be a list with one element or more"),
        ({"instances": {"x": 1}}, ONE, "'instances' must be a list"),
        ({"instances": [[1, 2, 3]]}, ONE, "Expected [-1,2], got [1,3]"),
        ({"instances": [[1, 2], [3]]}, ONE, "data is nested in another way than shape"),
        ({"instances": [1, 2]}, ONE, "has shape [-1, 2], these instances make [2]; an instance is a row of shape [2]"),
        ({"instances": [[1, 2]]}, FIXED, "has shape [2], these instances make [1, 2]"),
        ({"instances": [[1, 2]]}, TWO, "must be an object with the inputs of model 'M': x, s"),
        ({"instances": [{"x": [1, 2]}]}, TWO, "missing required input(s) ['s']"),
        ({"instances": [{"y": 1}]}, ONE, "an instance for model 'M' has 'y', its inputs are: x"),
        ({"instances": [{"x": [1, 2]}, {}]}, ONE, "differ in their members"),
        ({"instances": [{"x": [1, 2]}, [3, 4]]}, ONE, "these instances make [2]"),
        ({"instances": [[1, 2]] * 9}, ONE, "batch-size must be >= 1 and <= 8"),
        ({"instances": [{"b64": "AP8="}, "x"]}, TEXT, "objects with 'b64' and others"),
        ({"instances": [{"b64": "AP8"}]}, TEXT, "a string is not base64"),
        ({"instances": [{"b64": "AP8="}]}, ONE, ""),
        ({"instances": [[1, 2]], "parameters": [1]}, ONE, "'parameters' must be an object"),
    ],
)
def test_what_cannot_be_rows_is_refused(document: Any, described: Metadata, says: str) -> None:
    with pytest.raises(CallerError) as caught:
        read(document, described)
    assert caught.value.code == "bad_request"
    assert says in caught.value.text


def output(name: str, array: Any) -> OutputTensor:
    datatype = {"f": "FP32", "i": "INT64", "b": "BOOL"}[array.dtype.kind]
    return OutputTensor(name, datatype, array.shape, memoryview(array.tobytes()))


@pytest.mark.parametrize("shape", [(2,), (2, 1), (2, 3), (2, 3, 2), (2, 0), (2, 0, 3), (2, 3, 0)])
def test_each_prediction_is_a_row_of_the_output(shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    assert json.loads(predictions.predictions("M", [output("y", array)], 2)) == {"predictions": array.tolist()}


@pytest.mark.parametrize("shape", [(2, 40_000), (40_000, 2), (20_000,), (3, 5, 7_001), (20_000, 1, 2)])
def test_large_outputs_are_written_in_pieces_and_the_same(shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    array.ravel()[5::9001] = np.nan
    written = predictions.predictions("M", [output("y", array)], shape[0])
    np.testing.assert_array_equal(np.array(json.loads(written)["predictions"], np.float32), array)
    both = json.loads(predictions.predictions("M", [output("y", array), output("z", array)], shape[0]))["predictions"]
    np.testing.assert_array_equal(np.array([each["z"] for each in both], np.float32), array)


def test_of_several_outputs_a_prediction_is_an_object() -> None:
    words = OutputTensor("s", "BYTES", (2, 1), memoryview(pack_strings([b"a", "ä,".encode()])))
    written = predictions.predictions("M", [output('q"', np.array([1, 2])), words], 2)
    assert json.loads(written) == {"predictions": [{'q"': 1, "s": ["a"]}, {'q"': 2, "s": ["ä,"]}]}


def test_what_json_has_no_word_for_is_written_as_at_v2_and_bytes_in_base64() -> None:
    written = predictions.predictions("M", [output("y", np.array([np.nan, -np.inf], np.float32))], 2)
    assert written == b'{"predictions":[NaN,-Infinity]}'
    data = OutputTensor("s", "BYTES", (2,), memoryview(pack_strings([b"a", b"\xff"])))
    assert json.loads(predictions.predictions("M", [data], 2)) == {"predictions": [{"b64": "YQ=="}, {"b64": "/w=="}]}


@pytest.mark.parametrize("shape", [(), (3,), (1, 2)])
def test_an_output_without_a_row_for_each_instance_is_no_prediction(shape: tuple[int, ...]) -> None:
    with pytest.raises(CallerError, match=r"output 'y' of model 'M' has shape .* for 2 instances"):
        predictions.predictions("M", [output("y", np.zeros(shape, np.float32))], 2)
