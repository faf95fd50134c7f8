"""Inference responses: order, names, both forms, and invalid outputs of workers."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mmsup.gateway.protocol import classification as classes
from mmsup.gateway.protocol import infer_response
from mmsup.gateway.protocol.infer_request import RequestedOutput
from mmsup.gateway.protocol.inference_job import OutputTensor
from mmsup.ipc.errors import WorkerError
from mmsup.ipc.specs import TensorSpec
from mmsup.ipc.tensors.datatypes import pack_strings
from mmsup.ipc.tensors.numpy_arrays import NUMPY, as_bytes

ORIGIN = infer_response.ResponseContext("M", "3", "r1", batched=False, labels={})


def made(name: str, datatype: str, values: list[object], shape: tuple[int, ...] | None = None) -> OutputTensor:
    array = np.array(values, NUMPY[datatype])
    return OutputTensor(name, datatype, array.shape if shape is None else shape, as_bytes(array))


def wanted(name: str, datatype: str, *, binary: bool = False, classes: int = 0) -> RequestedOutput:
    return RequestedOutput(TensorSpec(name, datatype, (-1,)), binary, classes)


def test_a_response_names_model_version_and_request() -> None:
    answer = infer_response.build_response(ORIGIN, [wanted("A", "INT8")], [made("A", "INT8", [1, -1])])
    assert json.loads(answer.head) == {
        "model_name": "M",
        "model_version": "3",
        "id": "r1",
        "outputs": [{"name": "A", "datatype": "INT8", "shape": [2], "data": [1, -1]}],
    }
    assert answer.blobs is None


def test_a_request_without_id_is_answered_without_one() -> None:
    answer = infer_response.build_response(
        infer_response.ResponseContext("M", "3", "", batched=False, labels={}), [], []
    )
    assert "id" not in json.loads(answer.head)


def test_outputs_are_exactly_the_requested_ones_in_their_order() -> None:
    outputs = [made("A", "INT8", [1]), made("B", "INT8", [2]), made("C", "INT8", [3])]
    answer = infer_response.build_response(ORIGIN, [wanted("C", "INT8"), wanted("A", "INT8")], outputs)
    assert [each["name"] for each in json.loads(answer.head)["outputs"]] == ["C", "A"]


def test_binary_tensors_follow_the_json_in_its_order_and_are_not_copied() -> None:
    a, b, c = made("A", "INT16", [1, 2]), made("B", "FP64", [0.5]), made("C", "BOOL", [True])
    answer = infer_response.build_response(
        ORIGIN, [wanted("C", "BOOL", binary=True), wanted("B", "FP64"), wanted("A", "INT16", binary=True)], [a, b, c]
    )
    outputs = json.loads(answer.head)["outputs"]
    assert [each.get("parameters") for each in outputs] == [{"binary_data_size": 1}, None, {"binary_data_size": 4}]
    assert outputs[1]["data"] == [0.5]
    assert answer.blobs is not None
    assert [bytes(each) for each in answer.blobs] == [b"\1", b"\1\0\2\0"]
    assert answer.blobs[1].obj is a.data.obj
    assert answer.size == len(answer.head) + 5


@pytest.mark.parametrize("datatype", [each for each in NUMPY if each != "BYTES"])
def test_every_datatype_can_be_sent_as_binary_data(datatype: str) -> None:
    tensor = made("A", datatype, [0, 1])
    answer = infer_response.build_response(ORIGIN, [wanted("A", datatype, binary=True)], [tensor])
    assert answer.blobs is not None
    assert bytes(answer.blobs[0]) == bytes(tensor.data)


def test_strings_can_be_sent_in_both_forms() -> None:
    tensor = OutputTensor("A", "BYTES", (2,), memoryview(pack_strings([b"x", "ä".encode()])))
    as_json = infer_response.build_response(ORIGIN, [wanted("A", "BYTES")], [tensor])
    assert json.loads(as_json.head)["outputs"][0]["data"] == ["x", "ä"]
    as_blob = infer_response.build_response(ORIGIN, [wanted("A", "BYTES", binary=True)], [tensor])
    assert as_blob.blobs == [tensor.data]


@pytest.mark.parametrize(
    ("outputs", "says"),
    [
        ([], "output 'A' of model 'M' is missing"),
        ([made("A", "INT8", [1])], "output 'A' of model 'M' is INT8 and not BYTES"),
        ([OutputTensor("A", "BYTES", (1,), memoryview(b"\5\0\0\0abc"))], "claims 5 bytes, 3 are left"),
        ([OutputTensor("A", "BYTES", (2,), memoryview(pack_strings([b"x"])))], "needs 2 elements, the data has 1"),
    ],
)
def test_outputs_that_do_not_match_the_metadata_are_refused(outputs: list[OutputTensor], says: str) -> None:
    with pytest.raises(WorkerError, match=says) as caught:
        infer_response.build_response(ORIGIN, [wanted("A", "BYTES", binary=True)], outputs)
    assert caught.value.code == "bad_worker_reply"


# Classification.


def top(
    tensor: OutputTensor, count: int, labels: list[str] | None = None, *, batched: bool = False
) -> tuple[list[str], object]:
    answer = infer_response.build_response(
        infer_response.ResponseContext("M", "1", "", batched, {"A": labels or []}),
        [RequestedOutput(TensorSpec("A", tensor.datatype, (-1,)), binary=False, classes=count)],
        [tensor],
    )
    output = json.loads(answer.head)["outputs"][0]
    assert output["datatype"] == "BYTES"
    return output["data"], output["shape"]


def test_classes_are_highest_first_with_ties_by_index_and_labels_where_there_are_any() -> None:
    tensor = made("A", "FP32", [1, 5, 5, -2])
    assert top(tensor, 3, ["cat", "dog"]) == (["5.000000:1:dog", "5.000000:2", "1.000000:0:cat"], [3])


def test_each_row_of_a_batch_has_its_own_classes() -> None:
    tensor = made("A", "FP64", [[0, 1], [3, 2]])
    assert top(tensor, 1, batched=True) == (["1.000000:1", "3.000000:0"], [2, 1])


def test_more_classes_than_there_are_is_all_of_them() -> None:
    assert top(made("A", "FP32", [1, 2]), 9)[1] == [2]


@pytest.mark.parametrize(
    ("datatype", "values", "first"),
    [
        ("INT64", [-(2**63), 2**63 - 1, 0], f"{2**63 - 1}:1"),
        ("UINT64", [0, 2**64 - 1, 1], f"{2**64 - 1}:1"),
        ("UINT8", [3, 200, 100], "200:1"),
        ("FP16", [0.5, 2, 1], "2.000000:1"),
        ("BF16", [0.5, 2, 1], "2.000000:1"),
    ],
)
def test_every_numeric_datatype_is_ordered(datatype: str, values: list[object], first: str) -> None:
    assert top(made("A", datatype, values), 1)[0] == [first]


def test_nan_is_the_last_class() -> None:
    assert top(made("A", "FP32", [float("nan"), -1, float("-inf")]), 3)[0] == ["-1.000000:1", "-inf:2", "nan:0"]


def test_an_empty_batch_has_no_classes() -> None:
    tensor = made("A", "FP32", [], (0, 5))
    assert classes.top_classes(tensor, 2, [], batched=True).shape[0] == 0


def test_bytes_that_are_no_text_are_written_in_base64_where_that_is_wanted() -> None:
    tensor = OutputTensor("A", "BYTES", (2,), memoryview(pack_strings([b"\0\xff", b""])))
    requested = RequestedOutput(TensorSpec("A", "BYTES", (-1,)), binary=False, base64=True)
    answer = infer_response.build_response(ORIGIN, [requested], [tensor])
    (shown,) = json.loads(answer.head)["outputs"]
    assert (shown["data"], shown["parameters"]) == (["AP8=", ""], {"content_type": "base64"})
