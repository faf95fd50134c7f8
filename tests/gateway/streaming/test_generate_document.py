"""generate's flat JSON: which tensors it means, and how answers are shown."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from mmsup.gateway.protocol.infer_request import RequestedOutput
from mmsup.gateway.protocol.infer_response import ResponseContext
from mmsup.gateway.protocol.inference_job import OutputTensor
from mmsup.gateway.streaming.generate_document import infer_document, response_document, tensor_shape
from mmsup.ipc.errors import CallerError
from mmsup.ipc.specs import Metadata, TensorSpec

Document = Any  # JSON


def metadata(*inputs: TensorSpec, batch: int = 0) -> Metadata:
    return Metadata("python", batch, inputs, (TensorSpec("y", "FP32", (-1,)), TensorSpec("t", "BYTES", (1,))))


@pytest.mark.parametrize(
    ("declared", "nesting", "batched", "shape"),
    [
        ((1,), (), False, (1,)),
        ((-1,), (), False, (1,)),
        ((), (), False, ()),
        ((-1,), (3,), False, (3,)),
        ((-1,), (0,), False, (0,)),
        ((2, 2), (4,), False, (2, 2)),
        ((2, -1), (6,), False, (2, 3)),
        ((-1, -1), (2, 3), False, (2, 3)),
        ((-1, -1), (6,), False, None),
        ((2,), (3,), False, None),
        ((2,), (2,), True, (1, 2)),
        ((2,), (6,), True, (3, 2)),
        ((2,), (3, 2), True, (3, 2)),
        ((-1,), (5,), True, (1, 5)),
        ((1,), (), True, (1, 1)),
        ((1,), (3,), True, (3, 1)),
        ((2,), (3,), True, None),
    ],
)
def test_a_value_has_the_shape_that_the_metadata_gives_it(
    declared: tuple[int, ...], nesting: tuple[int, ...], batched: bool, shape: tuple[int, ...] | None
) -> None:
    assert tensor_shape(declared, nesting, batched=batched) == shape


def test_names_of_inputs_are_tensors_and_all_else_is_a_parameter() -> None:
    found = infer_document(
        {"x": [[1, 2], [3, 4]], "id": "a", "parameters": {"timeout": 5, "text": "t"}, "stream": True},
        "m",
        metadata(TensorSpec("x", "INT32", (2, 2)), TensorSpec("text", "BYTES", (1,))),
    )
    assert found == {
        "id": "a",
        "parameters": {"timeout": 5, "stream": True},
        "inputs": [
            {"name": "x", "datatype": "INT32", "shape": [2, 2], "data": [1, 2, 3, 4]},
            {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["t"]},
        ],
    }


def test_inputs_may_have_the_names_of_other_members() -> None:
    both = TensorSpec("id", "INT32", (1,)), TensorSpec("parameters", "INT32", (-1,))
    found = infer_document({"id": 3, "parameters": [4]}, "m", metadata(*both))
    assert [each["data"] for each in found["inputs"]] == [[3], [4]]
    assert found["parameters"] == {}


@pytest.mark.parametrize("value", [[], "x", None, {"x": [[1], [2, 3]]}, {"x": [1, 2, 3]}, {"parameters": []}])
def test_what_makes_up_no_request_is_refused(value: Document) -> None:
    with pytest.raises(CallerError):
        infer_document(value, "m", metadata(TensorSpec("x", "INT32", (2,))))


def test_a_single_element_is_a_scalar_and_outputs_that_are_not_there_are_left_out() -> None:
    context = ResponseContext("m", "2", "", batched=False, labels={})
    wanted = [RequestedOutput(each, binary=False) for each in metadata().outputs]
    one = OutputTensor("y", "FP32", (1,), memoryview(struct.pack("<f", 0.5)))
    assert response_document(context, wanted, [one]) == b'{"model_name":"m","model_version":"2","y":0.5}'
    two = OutputTensor("y", "FP32", (1, 2), memoryview(struct.pack("<2f", 0.5, float("nan"))))
    text = OutputTensor("t", "BYTES", (1,), memoryview(b"\x02\0\0\0hi"))
    named = ResponseContext("m", "2", "a", batched=False, labels={})
    assert response_document(named, wanted, [text, two]) == (
        b'{"id":"a","model_name":"m","model_version":"2","y":[0.5,NaN],"t":"hi"}'
    )
