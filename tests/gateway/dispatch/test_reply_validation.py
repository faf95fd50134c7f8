"""Every number of a worker's reply is checked."""

from __future__ import annotations

import pytest

from mmsup.gateway.dispatch.reply_validation import validate_reply, validate_signature
from mmsup.ipc.errors import ERROR_CLASSES, MODEL_CODES
from mmsup.ipc.memory.arena import Slot, SlotState
from mmsup.ipc.messages.data import InferReply, ReplySignature, TensorLocation
from mmsup.ipc.specs import Metadata, TensorSpec
from mmsup.ipc.transport.codec import pack_signature

GRANTED = Slot(5, 1024, 4096, memoryview(bytearray(4096)), SlotState.GRANTED)
Y = TensorSpec("y", "FP32", (16,))
DECLARED = Metadata("p", 0, (), (TensorSpec("y", "FP32", (-1,)),))
Result = tuple[tuple[TensorSpec, ...], tuple[TensorLocation, ...]]


def one(location: TensorLocation, spec: TensorSpec = Y) -> Result:
    return (spec,), (location,)


def with_shape(shape: tuple[int, ...], location: TensorLocation = (5, 1024, 64), datatype: str = "FP32") -> Result:
    return one(location, TensorSpec("y", datatype, shape))


def error_of(result: Result, granted: Slot | None = GRANTED) -> str:
    outputs, locations = result
    words = pack_signature(ReplySignature(outputs))
    return validate_reply(
        InferReply(1, signature=words, locations=locations), validate_signature(words, DECLARED), granted
    )


@pytest.mark.parametrize(
    "good",
    [
        one((5, 1024, 64)),
        one((5, 1024 + 4096 - 64, 64)),
        with_shape((2,), b"12345678"),
        with_shape((1,), b"\1\0\0\0a", "BYTES"),
        with_shape((0, 4), b""),
        ((), ()),
    ],
)
def test_a_correct_reply_has_no_error(good: Result) -> None:
    assert error_of(good) == ""


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (one((6, 1024, 64)), "not granted"),
        (one((5, 1023, 64)), "outside"),
        (one((5, 1024 + 4096 - 63, 64)), "outside"),
        (one((5, 2**63, 64)), "outside"),
        (one((5, 1024, -64)), "negative"),
        (one((5, 1024, 60)), "60 bytes where its shape has 64"),
        (with_shape((2**62, 2**62)), "bytes where its shape has"),
        (with_shape((-16,)), "shape"),
        (with_shape((2**62, 0), b""), "its shape is impossible"),
        (with_shape((2**62, 0), b"", "BYTES"), "its shape is impossible"),
        (with_shape((1,) * 17), "shape"),
        (with_shape((1,), datatype="FP31"), "datatype"),
        (with_shape((2,), b"1234"), "4 bytes where its shape has 8"),
        (((Y, Y), ((5, 1024, 64), (5, 1024, 64))), "twice"),
        (((Y,), ()), "0 outputs where its signature has 1"),
        (((), (b"",)), "1 outputs where its signature has 0"),
    ],
)
def test_a_wrong_reply_is_rejected(bad: Result, text: str) -> None:
    assert text in error_of(bad)


@pytest.mark.parametrize("need", [-1, 2**50])
def test_an_impossible_buffer_size_is_rejected(need: int) -> None:
    assert "bytes" in validate_reply(InferReply(1, needed_bytes=need), None, GRANTED)


def test_a_buffer_size_or_an_error_alone_is_a_reply_and_an_empty_one_is_not() -> None:
    assert validate_reply(InferReply(1, needed_bytes=5000), None, None) == ""
    assert validate_reply(InferReply(1, "inference_failed", "why"), None, None) == ""
    assert validate_reply(InferReply(1), None, None) == "it has neither a result nor an error"


def test_a_malformed_signature_is_rejected() -> None:
    assert "malformed" in validate_reply(
        InferReply(1, signature=b"\xc1"), validate_signature(b"\xc1", DECLARED), GRANTED
    )


def test_a_location_is_rejected_where_no_buffer_was_granted() -> None:
    assert "not granted" in error_of(one((5, 1024, 64)), None)


def test_more_outputs_than_the_model_declares_are_refused_before_they_are_parsed() -> None:
    many = tuple(TensorSpec(f"n{number}", "FP32", (1,)) for number in range(24_000))
    words = pack_signature(ReplySignature(many))
    refused = validate_signature(words, DECLARED)
    assert "for 1 outputs" in refused.error
    assert (refused.packed, refused.outputs) == (b"", ()), "nothing of it is kept"


def test_an_output_that_the_model_does_not_declare_is_refused() -> None:
    assert "declares no such output" in error_of(one(b"1234", TensorSpec("z", "FP32", (1,))))


def test_all_declared_outputs_of_any_possible_shape_fit() -> None:
    shape = (2**62,) * 16
    declared = tuple(TensorSpec("é" * 40 + str(number), "UINT16", (-1,) * 16) for number in range(50))
    words = pack_signature(ReplySignature(tuple(TensorSpec(each.name, "UINT16", shape) for each in declared)))
    assert validate_signature(words, Metadata("p", 0, (), declared)).error == ""


@pytest.mark.parametrize("code", [each for kind in ERROR_CLASSES for each in kind.codes])
def test_a_worker_answers_with_the_errors_of_a_model_and_no_others(code: str) -> None:
    is_refused = validate_reply(InferReply(1, code, "why"), None, None) != ""
    assert is_refused == (code not in MODEL_CODES)
    assert "may not answer" in validate_reply(InferReply(1, "new_" + code, "why"), None, None)


@pytest.mark.parametrize("field", ["queue_ns", "input_ns", "infer_ns", "output_ns", "batch", "rows"])
@pytest.mark.parametrize("number", [-1, 1 << 50, (1 << 64) - 1])
def test_an_impossible_time_is_refused_before_it_is_counted(field: str, number: int) -> None:
    reply = InferReply(1, "inference_failed", "why")
    setattr(reply, field, number)
    assert "impossible" in validate_reply(reply, None, None)
