"""Requests and replies of an inference against the messages of tritonclient."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from mmsup.gateway.protocol.inference_job import OutputTensor
from mmsup.gateway.rpc.infer import infer_messages
from mmsup.gateway.rpc.infer.infer_messages import RpcRequest, read_request, response_parts, stream_parts, varint
from mmsup.ipc.errors import CallerError
from mmsup.ipc.tensors.datatypes import ITEM_BYTES, pack_strings

TYPED: dict[str, tuple[str, list[Any], str]] = {
    "BOOL": ("bool_contents", [True, False, True], "?"),
    "INT8": ("int_contents", [-128, 0, 127], "i1"),
    "INT16": ("int_contents", [-(1 << 15), 0, (1 << 15) - 1], "<i2"),
    "INT32": ("int_contents", [-(1 << 31), 0, (1 << 31) - 1], "<i4"),
    "INT64": ("int64_contents", [-(1 << 63), 0, (1 << 63) - 1], "<i8"),
    "UINT8": ("uint_contents", [0, 1, 255], "u1"),
    "UINT16": ("uint_contents", [0, 1, (1 << 16) - 1], "<u2"),
    "UINT32": ("uint_contents", [0, 1, (1 << 32) - 1], "<u4"),
    "UINT64": ("uint64_contents", [0, 1, (1 << 64) - 1], "<u8"),
    "FP32": ("fp32_contents", [1.5, float("inf"), 1e-45], "<f4"),
    "FP64": ("fp64_contents", [0.1, float("-inf"), 5e-324], "<f8"),
    "BYTES": ("bytes_contents", [b"", b"\xff\0", b"abc"], ""),
}


def request(**fields: Any) -> Any:  # a message of tritonclient
    return service_pb2.ModelInferRequest(model_name="m", **fields)


def tensor(datatype: str, shape: list[int], name: Any = "x", **contents: Any) -> Any:
    made = service_pb2.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=shape)
    for field, values in contents.items():
        getattr(made.contents, field).extend(values)
    return made


def read(message: Any) -> RpcRequest:
    return read_request(infer_messages.parse_message(message.SerializeToString()))


def refused(message: Any) -> str:
    with pytest.raises(CallerError) as caught:
        read(message)
    assert caught.value.code == "bad_request"
    return caught.value.text


def test_typed_contents_are_known_for_every_datatype_that_has_them() -> None:
    assert set(TYPED) | {"FP16", "BF16"} == set(ITEM_BYTES)


@pytest.mark.parametrize("datatype", TYPED)
def test_typed_contents_are_the_bytes_that_raw_ones_would_be(datatype: str) -> None:
    field, values, dtype = TYPED[datatype]
    raw = np.array(values, dtype).tobytes() if dtype else pack_strings(values)
    typed = read(request(inputs=[tensor(datatype, [3], **{field: values})]))
    given_raw = read(request(inputs=[tensor(datatype, [3])], raw_input_contents=[raw]))
    assert typed == given_raw
    assert typed.blobs == [raw]
    assert typed.blob_bytes == len(raw)


def test_every_member_of_a_request_reaches_the_document() -> None:
    message = request(
        model_version="3",
        id="seven",
        inputs=[tensor("FP32", [1, 2], "a"), tensor("BYTES", [], "b")],
        outputs=[service_pb2.ModelInferRequest.InferRequestedOutputTensor(name="y")],
        raw_input_contents=[bytes(8), b"\x01\0\0\0z"],
    )
    message.parameters["flag"].bool_param = True
    message.parameters["count"].int64_param = -5
    message.parameters["word"].string_param = "é"
    message.parameters["rate"].double_param = 0.5
    message.parameters["large"].uint64_param = (1 << 64) - 1
    message.inputs[0].parameters["p"].int64_param = 1
    message.outputs[0].parameters["classification"].int64_param = 2
    found = read(message)
    assert (found.model, found.version, found.id, found.blobs) == ("m", "3", "seven", [bytes(8), b"\x01\0\0\0z"])
    assert found.document == {
        "id": "seven",
        "parameters": {
            "flag": True,
            "count": -5,
            "word": "é",
            "rate": 0.5,
            "large": (1 << 64) - 1,
            "binary_data_output": True,
        },
        "inputs": [
            {"name": "a", "datatype": "FP32", "shape": [1, 2], "parameters": {"p": 1, "binary_data_size": 8}},
            {"name": "b", "datatype": "BYTES", "shape": [], "parameters": {"binary_data_size": 5}},
        ],
        "outputs": [{"name": "y", "parameters": {"classification": 2, "binary_data": True}}],
    }


def test_the_wish_for_an_empty_last_reply_is_not_the_model_s() -> None:
    message = request()
    message.parameters["triton_enable_empty_final_response"].bool_param = True
    assert read(message).document["parameters"] == {"binary_data_output": True}


def test_a_tensor_in_shared_memory_has_no_bytes_and_keeps_the_order_of_the_others() -> None:
    message = request(
        inputs=[tensor("INT8", [1], "a"), tensor("INT8", [1], "b"), tensor("INT8", [1], "c")],
        raw_input_contents=[b"\1", b"\3"],
    )
    message.inputs[1].parameters["shared_memory_region"].string_param = "r"
    found = read(message)
    assert found.blobs == [b"\1", b"\3"]
    assert found.document["inputs"][1]["parameters"] == {"shared_memory_region": "r"}


@pytest.mark.parametrize("datatype", TYPED)
def test_a_tensor_without_elements_needs_no_contents(datatype: str) -> None:
    assert read(request(inputs=[tensor(datatype, [0, 3])])).blobs == [b""]


def test_mixed_contents_are_refused_in_the_words_that_clients_test() -> None:
    message = request(inputs=[tensor("INT32", [1], int_contents=[1])], raw_input_contents=[bytes(4)])
    assert "contents field must not be specified when using raw_input_contents for 'x' for model 'm'" in refused(
        message
    )


@pytest.mark.parametrize("count", [1, 3])
def test_raw_contents_are_as_many_as_there_are_inputs(count: int) -> None:
    message = request(inputs=[tensor("INT8", [1], "a"), tensor("INT8", [1], "b")], raw_input_contents=[b"\1"] * count)
    assert f"expected 2 entries of raw_input_contents for model 'm', one for each input, got {count}" in refused(
        message
    )


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_precision_has_raw_contents_alone(datatype: str) -> None:
    text = f"input 'x' for model 'm' is {datatype}: send it in raw_input_contents"
    assert refused(request(inputs=[tensor(datatype, [1])])) == text
    assert refused(request(inputs=[tensor(datatype, [1], fp32_contents=[1.0])])) == text
    assert read(request(inputs=[tensor(datatype, [1])], raw_input_contents=[b"ab"])).blobs == [b"ab"]


@pytest.mark.parametrize("datatype", TYPED)
def test_contents_in_a_field_of_another_datatype_are_refused(datatype: str) -> None:
    field, values, _ = TYPED[datatype]
    other = "fp32_contents" if field != "fp32_contents" else "int_contents"
    for message in (
        request(inputs=[tensor(datatype, [1], **{other: [1]})]),
        request(inputs=[tensor(datatype, [3], **{field: values, other: [1]})]),
    ):
        assert f"its contents belong into {field}, not " in refused(message)


@pytest.mark.parametrize("shape", [[2], [4], [3, 2], [0], []])
def test_as_many_elements_as_the_shape_says(shape: list[int]) -> None:
    text = refused(request(inputs=[tensor("INT32", shape, int_contents=[1, 2, 3])]))
    assert text == f"input 'x' for model 'm' has 3 elements, its shape {shape} needs {int(np.prod(shape))}"


@pytest.mark.parametrize(
    ("datatype", "value"), [("INT8", 128), ("INT8", -129), ("INT16", 1 << 15), ("UINT8", 256), ("UINT16", 1 << 16)]
)
def test_a_number_beyond_its_datatype_is_refused_and_not_wrapped(datatype: str, value: int) -> None:
    field = TYPED[datatype][0]
    assert f"beyond the range of {datatype}" in refused(request(inputs=[tensor(datatype, [1], **{field: [value]})]))


def test_a_parameter_without_a_value_is_refused() -> None:
    message = request()
    message.parameters["empty"].SetInParent()
    assert refused(message) == "parameter 'empty' has no value"


def test_too_many_inputs_are_refused() -> None:
    assert "65 inputs, at most 64 are allowed" in refused(request(inputs=[tensor("INT8", [0])] * 65))


@pytest.mark.parametrize("data", [b"\xff", b"\x0a\x05ab", b"\x0a\x02\xff\xfe"])
def test_bytes_that_are_no_message_are_refused(data: bytes) -> None:
    with pytest.raises(CallerError, match="failed to parse the request: it is no ModelInferRequest"):
        infer_messages.parse_message(data)


@given(st.binary(max_size=80))
def test_any_bytes_are_a_request_or_a_fault_of_the_caller(data: bytes) -> None:
    try:
        read_request(infer_messages.parse_message(data))
    except CallerError:
        return


@pytest.mark.parametrize(
    ("value", "made"),
    [(0, b"\0"), (1, b"\1"), (127, b"\x7f"), (128, b"\x80\1"), (300, b"\xac\2"), (1 << 31, b"\x80" * 4 + b"\x08")],
)
def test_a_varint_has_seven_bits_a_byte_the_lowest_first(value: int, made: bytes) -> None:
    assert varint(value) == made


def output(name: str, datatype: str, shape: tuple[int, ...], data: bytes | memoryview) -> OutputTensor:
    return OutputTensor(name, datatype, shape, memoryview(data))


OUTPUTS = [
    output("a", "FP32", (1, 2), bytes(range(8))),
    output("empty", "INT64", (0,), b""),
    output("b", "BYTES", (1,), b"\x03\0\0\0abc"),
    output("c", "INT32", (2,), memoryview(struct.pack("<2i", 1, 2)).cast("i")),
    output("large", "UINT8", (300,), bytes(300)),
]


def test_a_reply_is_tritonclient_s_message_in_every_field() -> None:
    parts = response_parts(("m", "3", "seven"), OUTPUTS, {"last": True})
    found = service_pb2.ModelInferResponse.FromString(b"".join(parts))
    assert (found.model_name, found.model_version, found.id) == ("m", "3", "seven")
    assert {key: value.bool_param for key, value in found.parameters.items()} == {"last": True}
    assert [(each.name, each.datatype, tuple(each.shape)) for each in found.outputs] == [
        (each.name, each.datatype, each.shape) for each in OUTPUTS
    ]
    assert list(found.raw_output_contents) == [bytes(each.data) for each in OUTPUTS]


def test_the_data_of_a_reply_is_not_copied() -> None:
    memory = bytearray(b"abcd")
    parts = response_parts(("m", "1", ""), [OutputTensor("y", "UINT8", (4,), memoryview(memory))])
    memory[:] = b"wxyz"
    assert service_pb2.ModelInferResponse.FromString(b"".join(parts)).raw_output_contents[0] == b"wxyz"


@pytest.mark.parametrize("outputs", [OUTPUTS, OUTPUTS[:1], []])
def test_a_reply_of_a_stream_is_that_reply_in_another_message(outputs: list[OutputTensor]) -> None:
    parts = response_parts(("m", "3", "seven"), outputs)
    found = service_pb2.ModelStreamInferResponse.FromString(b"".join(stream_parts(parts)))
    assert found.error_message == ""
    assert found.infer_response == service_pb2.ModelInferResponse.FromString(b"".join(parts))
