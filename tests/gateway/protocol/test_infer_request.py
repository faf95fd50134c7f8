"""Invalid requests and the error of each; random requests."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fake_router import metadata
from mmsup.gateway.client_memory.region_rules import RegionSpan
from mmsup.gateway.protocol import binary_tensors, infer_request, json_document
from mmsup.gateway.protocol.sequences.sequence_parameters import SequenceFlags
from mmsup.ipc.errors import CallerError
from mmsup.ipc.specs import Metadata, TensorSpec

PLAIN = metadata(("X", "FP32", (-1, 2)), ("N", "INT32", (1,)))
BATCHED = metadata(("X", "FP32", (16,)), max_batch_size=4)
STRINGS = metadata(("S", "BYTES", (-1,)))
NARROW = metadata(("H", "FP16", (1,)))
X = {"name": "X", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}
N = {"name": "N", "shape": [1], "datatype": "INT32", "data": [7]}


def read(request: Any, described: Metadata = PLAIN, blobs: bytes = b"") -> infer_request.InferRequest:
    text = json.dumps(request).encode()
    layout = binary_tensors.body_layout(str(len(text)) if blobs else None, len(text) + len(blobs))
    space = memoryview(bytearray(layout.start) + text + blobs)
    value = json_document.parse_json(space[layout.start : layout.blobs_start])
    infer_request.request_id(value)
    return infer_request.parse_request(
        value, "M", described, binary_tensors.Blobs(space, layout.blobs_start, layout.space)
    )


def x(**changes: Any) -> dict[str, Any]:
    """A request with a changed X beside a good N; None takes a member away."""
    return {"inputs": [{key: value for key, value in {**X, **changes}.items() if value is not None}, N]}


def blob(size: Any, **changes: Any) -> dict[str, Any]:
    return x(data=None, parameters={"binary_data_size": size}, **changes)


REFUSED: list[tuple[Any, str]] = [
    ([], "it is not an object"),
    ("x", "it is not an object"),
    ({"id": 7, "inputs": [X, N]}, "'id' must be a string"),
    ({"id": "x" * 1025, "inputs": [X, N]}, "'id' must be a string of at most"),
    ({"inputs": {}}, "'inputs' must be a list of objects"),
    ({"inputs": [1]}, "'inputs' must be a list of objects"),
    ({"inputs": [{}]}, "each of 'inputs' must have a 'name'"),
    ({"inputs": [{"name": 1}]}, "each of 'inputs' must have a 'name'"),
    ({"inputs": [{"name": str(n)} for n in range(65)]}, "'inputs' has 65 tensors, at most 64"),
    ({"inputs": [X, X]}, "'X' is named twice in 'inputs'"),
    ({"inputs": [X, N], "outputs": [{"name": "X_out"}, {"name": "X_out"}]}, "'X_out' is named twice in 'outputs'"),
    ({}, "expected 2 inputs but got 0 inputs for model 'M'. Got input(s) [], but missing required input(s) ['X', 'N']"),
    ({"inputs": []}, "missing required input(s) ['X', 'N']"),
    ({"inputs": [X]}, "Got input(s) ['X'], but missing required input(s) ['N']"),
    ({"inputs": [X, N, {**N, "name": "Z"}]}, "unexpected inference input 'Z' for model 'M', allowed inputs are: X, N"),
    (x(datatype="INT32"), "inference input 'X' data-type is 'INT32', but model 'M' expects 'FP32'"),
    (x(datatype="FP31"), "inference input 'X' data-type is 'FP31', but model 'M' expects 'FP32'"),
    (x(datatype=7), "data-type is missing, but model 'M' expects 'FP32'"),
    (x(datatype=None), "data-type is missing, but model 'M' expects 'FP32'"),
    (x(shape=None), "'shape' of input 'X' must be a list of integers"),
    (x(shape="1,2"), "'shape' of input 'X' must be a list of integers"),
    (x(shape=[1.0, 2]), "'shape' of input 'X' must be a list of integers"),
    (x(shape=[True, 2]), "'shape' of input 'X' must be a list of integers"),
    (x(shape=[1] * 17), "input 'X' has 17 dimensions, at most 16"),
    (x(shape=[1, 3]), "unexpected shape for input 'X' for model 'M'. Expected [-1,2], got [1,3]"),
    (x(shape=[2]), "Expected [-1,2], got [2]"),
    (x(shape=[-1, 2]), "is [-1,2]: give the sizes of this request's tensor, none of them negative"),
    (x(shape=[2**62, 2]), "is [4611686018427387904,2], which are more than 1099511627776 elements"),
    (x(shape=[3, 2]), "input 'X' for model 'M': shape [3, 2] needs 6 elements, data has 2"),
    (x(data=None), "input 'X' for model 'M' has neither 'data' nor 'binary_data_size'"),
    (x(parameters={"binary_data_size": 8}), "has both 'data' and 'binary_data_size'"),
    (x(parameters=[]), "'parameters' must be an object"),
    (x(data=["a", 2]), "input 'X' for model 'M': \"a\" is not a number"),
    ({"inputs": [X, {**N, "data": [2147483648]}]}, "input 'N' for model 'M': 2147483648 is out of the range of INT32"),
    ({"inputs": [X, {**N, "data": [float("nan")]}]}, "input 'N' for model 'M': NaN is not an integer of INT32"),
    (blob("8"), "parameter 'binary_data_size' must be an integer that is not negative"),
    (blob(-8), "parameter 'binary_data_size' must be an integer that is not negative"),
    (blob([8]), "parameter 'binary_data_size' must be an integer"),
    (blob(7), "input 'X' for model 'M' has binary_data_size 7, shape [1,2] and FP32 need 8"),
    (blob(8), "input 'X' for model 'M' needs 8 bytes of binary data, but only 0 of 0 are left in the body"),
    (
        {"inputs": [X, N], "outputs": [{"name": "Y"}]},
        "unexpected inference output 'Y' for model 'M', allowed outputs are",
    ),
    (
        {"inputs": [X, N], "outputs": [{"name": "X_out", "parameters": {"binary_data": 1}}]},
        "'binary_data' must be true",
    ),
    ({"inputs": [X, N], "outputs": [{"name": "X_out", "parameters": {"classification": -1}}]}, "'classification'"),
    ({"inputs": [X, N], "parameters": {"binary_data_output": "yes"}}, "'binary_data_output' must be true or false"),
    ({"inputs": [X, N], "parameters": {"timeout": -1}}, "parameter 'timeout'"),
    ({"inputs": [X, N], "parameters": {"timeout": "1"}}, "parameter 'timeout'"),
    ({"inputs": [X, N], "parameters": {"priority": -1}}, "parameter 'priority'"),
    ({"inputs": [X, N], "parameters": {"headers": {}}}, "'headers' is reserved"),
    ({"inputs": [X, N], "parameters": {"triton_x": 1}}, "'triton_x' is reserved"),
    ({"inputs": [X, N], "parameters": {"a": [1]}}, "parameter 'a' must be true, false, a number"),
    ({"inputs": [X, N], "parameters": {"a": None}}, "parameter 'a' must be true, false, a number"),
    ({"inputs": [X, N], "parameters": {"a": "x" * 70_000}}, "parameters of 70001 bytes"),
    ({"inputs": [X, N], "parameters": {str(n): n for n in range(300)}}, "300 parameters, at most 256"),
    ({"inputs": [X, N], "parameters": []}, "'parameters' must be an object"),
]


@pytest.mark.parametrize(("request_", "says"), REFUSED, ids=[says[:60] for _, says in REFUSED])
def test_an_invalid_request_is_refused_with_the_reason(request_: Any, says: str) -> None:
    with pytest.raises(CallerError) as caught:
        read(request_)
    assert says in caught.value.text
    assert caught.value.code == "bad_request"


def in_region(**parameters: Any) -> dict[str, Any]:
    """Parameters of a tensor in memory of its client."""
    return {"parameters": {f"shared_memory_{key}": value for key, value in parameters.items()}}


def test_tensors_in_memory_of_the_client_name_their_part_of_a_region() -> None:
    x = {"name": "X", "shape": [1, 2], "datatype": "FP32", **in_region(region="r", offset=8, byte_size=8)}
    y = {"name": "X_out", **in_region(region="s", byte_size=8)}
    y["parameters"]["binary_data"] = False  # as tritonclient leaves it
    assert read({"inputs": [X, N]}).uses_regions is False
    found = read({"inputs": [x, N], "outputs": [y], "parameters": {"binary_data_output": True}})
    assert found.uses_regions
    assert found.inputs[0].region == RegionSpan("r", 8, 8)
    assert found.outputs[0].region == RegionSpan("s", 0, 8)


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        (in_region(region="r"), "no 'shared_memory_byte_size'"),
        (in_region(byte_size=8), "no 'shared_memory_region' that is a name"),
        (in_region(region=7, byte_size=8), "no 'shared_memory_region' that is a name"),
        (in_region(region="", byte_size=8), "no 'shared_memory_region' that is a name"),
        (in_region(region="r", byte_size=-1), "integer that is not negative"),
        (in_region(region="r", byte_size=1 << 63), "shape [1,2] and FP32 need 8"),
        (in_region(region="r", byte_size=4), "shape [1,2] and FP32 need 8"),
        (in_region(region="r", byte_size=8, offset=True), "integer that is not negative"),
        (in_region(region="r", byte_size=8) | {"data": [1, 2]}, "both 'data' and 'shared_memory_region'"),
    ],
)
def test_an_input_in_memory_of_the_client_is_exactly_one_part_of_a_region(parameters: Any, says: str) -> None:
    x = {"name": "X", "shape": [1, 2], "datatype": "FP32", **parameters}
    with pytest.raises(CallerError) as caught:
        read({"inputs": [x, N]})
    assert says in caught.value.text
    assert caught.value.code == "bad_request"


@pytest.mark.parametrize("other", [{"binary_data": True}, {"classification": 2}])
def test_an_output_goes_to_one_place(other: Any) -> None:
    y: dict[str, Any] = {"name": "X_out", **in_region(region="s", byte_size=8)}
    y["parameters"] |= other
    with pytest.raises(CallerError) as caught:
        read({"inputs": [X, N], "outputs": [y]})
    assert f"both 'shared_memory_region' and '{next(iter(other))}'" in caught.value.text


def test_the_parameters_of_a_sequence_are_not_those_of_the_model_and_sequence_id_0_is_none() -> None:
    given = {"sequence_id": 5, "sequence_start": True, "mine": 1}
    found = read({"inputs": [X, N], "parameters": given})
    assert (found.sequence, found.parameters) == (SequenceFlags(5, is_start=True), {"mine": 1})
    none = read({"inputs": [X, N], "parameters": {"sequence_id": 0}})
    assert (none.sequence, none.parameters) == (None, {})


@pytest.mark.parametrize(("batch", "fits"), [(0, False), (1, True), (4, True), (5, False)])
def test_the_batch_is_bounded(batch: int, fits: bool) -> None:
    request = {"inputs": [{"name": "X", "shape": [batch, 16], "datatype": "FP32", "data": [0.5] * 16 * batch}]}
    if fits:
        assert read(request, BATCHED).inputs[0].shape == (batch, 16)
        return
    with pytest.raises(CallerError, match=f"batch-size must be >= 1 and <= 4 for 'M': input 'X' has {batch}"):
        read(request, BATCHED)


def test_an_error_about_a_batched_shape_includes_the_batch() -> None:
    request = {"inputs": [{"name": "X", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}
    with pytest.raises(CallerError, match=r"Expected \[-1,16\], got \[1,2\]"):
        read(request, BATCHED)


def test_inputs_of_one_request_have_one_batch() -> None:
    described = metadata(("A", "UINT8", (1,)), ("B", "UINT8", (1,)), max_batch_size=4)
    request = {
        "inputs": [{"name": n, "shape": [s, 1], "datatype": "UINT8", "data": [1] * s} for n, s in (("A", 1), ("B", 2))]
    }
    with pytest.raises(CallerError, match=r"differ in batch size: \[1, 2\]"):
        read(request, described)


def test_an_empty_tensor_with_an_impossible_shape_is_refused() -> None:
    described = metadata(("X", "FP32", (-1, -1, -1)))
    request = {"inputs": [{"name": "X", "shape": [0, 2**40, 2**40], "datatype": "FP32", "data": []}]}
    with pytest.raises(CallerError, match="more than 1099511627776 elements"):
        read(request, described)
    assert read({"inputs": [{**request["inputs"][0], "shape": [0, 5, 5]}]}, described).inputs[0].shape == (0, 5, 5)


def test_a_valid_request_is_parsed_completely() -> None:
    asked = read(
        {
            "id": "r7",
            "unknown": {"is": "ignored"},
            "inputs": [N, X],
            "outputs": [{"name": "X_out", "parameters": {"binary_data": True}}],
            "parameters": {"timeout": 1500, "priority": 1, "temperature": 0.5, "mode": "fast", "deep": True},
        }
    )
    assert [each.name for each in asked.inputs] == ["N", "X"]
    assert [(each.spec.name, each.binary) for each in asked.outputs] == [("X_out", True)]
    assert (asked.id, asked.timeout_us) == ("r7", 1500)
    assert asked.parameters == {"temperature": 0.5, "mode": "fast", "deep": True}


def test_outputs_follow_the_configuration_unless_they_are_named() -> None:
    assert [each.spec.name for each in read({"inputs": [X, N], "outputs": []}).outputs] == ["X_out", "N_out"]
    named = {"inputs": [X, N], "outputs": [{"name": "N_out"}, {"name": "X_out"}]}
    assert [each.spec.name for each in read(named).outputs] == ["N_out", "X_out"]


def test_an_outputs_own_binary_flag_wins() -> None:
    request = {
        "inputs": [X, N],
        "parameters": {"binary_data_output": True},
        "outputs": [{"name": "X_out"}, {"name": "N_out", "parameters": {"binary_data": False}}],
    }
    assert [each.binary for each in read(request).outputs] == [True, False]


def test_binary_tensors_are_in_the_order_of_the_json() -> None:
    request = {
        "inputs": [
            {"name": "N", "shape": [1], "datatype": "INT32", "parameters": {"binary_data_size": 4}},
            {"name": "X", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}},
        ]
    }
    first, second = read(request, blobs=bytes(12)).inputs
    assert first.offset % 64 == 0
    assert (first.size, second.offset, second.size) == (4, first.offset + 4, 8)
    with pytest.raises(CallerError, match="take 12 bytes of binary data, the body has 13"):
        read(request, blobs=bytes(13))


@pytest.mark.parametrize(
    ("size", "body", "says"),
    [
        (6, b"\2\0\0\0ab", "shape needs 2 elements, the data has 1"),
        (5, b"\2\0\0\0a", "element 0 claims 2 bytes, 1 are left"),
        (3, b"\2\0\0", "3 bytes are left where a 4-byte length"),
    ],
)
def test_strings_that_do_not_add_up_are_refused(size: int, body: bytes, says: str) -> None:
    request = {"inputs": [{"name": "S", "shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": size}}]}
    with pytest.raises(CallerError, match=f"input 'S' for model 'M': .*{says}"):
        read(request, STRINGS, body)


def test_an_optional_input_may_be_left_out() -> None:
    described = Metadata(
        "python", 0, (TensorSpec("A", "UINT8", (1,)), TensorSpec("B", "UINT8", (1,), optional=True)), ()
    )
    request = {"inputs": [{"name": "A", "shape": [1], "datatype": "UINT8", "data": [1]}]}
    assert [each.name for each in read(request, described).inputs] == ["A"]
    with pytest.raises(CallerError, match="expected 1 to 2 inputs but got 0 inputs"):
        read({"inputs": []}, described)


def test_fp16_in_json_is_refused_for_inputs_and_outputs() -> None:
    written = {"inputs": [{"name": "H", "shape": [1], "datatype": "FP16", "data": [1.0]}]}
    with pytest.raises(CallerError, match=r"input 'H' .* FP16 has no form in JSON"):
        read(written, NARROW)
    sent = {"inputs": [{"name": "H", "shape": [1], "datatype": "FP16", "parameters": {"binary_data_size": 2}}]}
    with pytest.raises(CallerError, match="output 'H_out' of model 'M' is FP16"):
        read(sent, NARROW, b"ab")
    read({**sent, "parameters": {"binary_data_output": True}}, NARROW, b"ab")


def test_strings_cannot_be_classified() -> None:
    request = {
        "inputs": [{"name": "S", "shape": [1], "datatype": "BYTES", "data": ["a"]}],
        "outputs": [{"name": "S_out", "parameters": {"classification": 1}}],
    }
    with pytest.raises(CallerError, match="cannot be classified"):
        read(request, STRINGS)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
TENSOR = st.fixed_dictionaries(
    {"name": st.sampled_from(["X", "N", "Z"]) | JSON},
    optional={
        "shape": st.lists(st.integers(-2, 2**64) | st.integers(0, 3), max_size=3) | JSON,
        "datatype": st.sampled_from(["FP32", "INT32", "BYTES", "FP16"]) | JSON,
        "data": st.lists(st.integers() | st.floats(), max_size=8) | JSON,
        "parameters": st.dictionaries(st.sampled_from(["binary_data_size", "classification", "binary_data"]), JSON)
        | JSON,
    },
)
REQUEST = st.fixed_dictionaries(
    {},
    optional={
        "id": JSON,
        "inputs": st.lists(TENSOR, max_size=3) | JSON,
        "outputs": st.lists(TENSOR, max_size=2) | JSON,
        "parameters": JSON,
    },
)


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@given(request=REQUEST | JSON, blobs=st.binary(max_size=16))
def test_arbitrary_requests_are_parsed_or_refused_with_a_caller_error(request: Any, blobs: bytes) -> None:
    with contextlib.suppress(CallerError):
        read(request, blobs=blobs)


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@given(
    header=st.none() | st.integers(-5, 300).map(str) | st.text(max_size=6),
    cut=st.integers(0, 300),
    noise=st.binary(max_size=6),
)
def test_a_damaged_valid_request_is_parsed_or_refused(header: str | None, cut: int, noise: bytes) -> None:
    good = (
        json.dumps({"inputs": [X, {**N, "data": None, "parameters": {"binary_data_size": 4}}]}).encode() + b"\1\0\0\0"
    )
    body = good[:cut] + noise + good[cut:]
    with contextlib.suppress(CallerError):
        layout = binary_tensors.body_layout(header, len(body))
        space = memoryview(bytearray(layout.start) + body)
        value = json_document.parse_json(space[layout.start : layout.blobs_start])
        infer_request.request_id(value)
        infer_request.parse_request(value, "M", PLAIN, binary_tensors.Blobs(space, layout.blobs_start, layout.space))


B64 = {"content_type": "base64"}


def test_strings_in_base64_are_the_bytes_that_they_stand_for() -> None:
    strings = {"name": "S", "shape": [2], "datatype": "BYTES", "data": ["AP8=", ""], "parameters": B64}
    wanted = [{"name": "S_out", "parameters": B64}]
    request = {"inputs": [strings], "outputs": wanted, "parameters": {"binary_data_output": True}}
    parsed = read(request, STRINGS)
    assert bytes(parsed.inputs[0].data or b"") == b"\x02\0\0\0\0\xff" + bytes(4)
    assert [(each.base64, each.binary) for each in parsed.outputs] == [(True, False)]


@pytest.mark.parametrize(
    ("strings", "wanted", "says"),
    [
        ({"data": ["AP8"]}, {}, "a string is not base64"),
        ({"data": ["A P8="]}, {}, "a string is not base64"),
        ({"data": [1]}, {}, "1 is not a string"),
        ({"data": ["AP8="]}, {**B64, "binary_data": True}, "in base64 and as binary data"),
        ({"parameters": {**B64, "binary_data_size": 4}}, {}, "base64 is for BYTES in JSON"),
    ],
)
def test_what_is_not_base64_is_refused(strings: dict[str, Any], wanted: dict[str, Any], says: str) -> None:
    given = {"name": "S", "shape": [1], "datatype": "BYTES", "parameters": B64, **strings}
    with pytest.raises(CallerError) as caught:
        read({"inputs": [given], "outputs": [{"name": "S_out", "parameters": wanted}]}, STRINGS)
    assert says in caught.value.text


def test_numbers_are_never_in_base64() -> None:
    for changed in (
        {"inputs": [{**X, "parameters": B64}, N]},
        {**x(), "outputs": [{"name": "X_out", "parameters": B64}]},
    ):
        with pytest.raises(CallerError, match="is FP32: content_type base64 is for BYTES in JSON"):
            read(changed)
    assert read({"inputs": [{**X, "parameters": {"content_type": "np"}}, N]}).inputs[0].name == "X"
