"""Every number of a worker's reply is checked."""

from __future__ import annotations

import pytest

from mmsup.gateway.dispatch.reply_validation import validate_reply, validate_signature
from mmsup.ipc.memory.arena import Slot, SlotState
from mmsup.ipc.messages.data import InferReply, ReplySignature, TensorLocation
from mmsup.ipc.specs import TensorSpec
from mmsup.ipc.transport.codec import pack_signature

GRANTED = Slot(5, 1024, 4096, memoryview(bytearray(4096)), SlotState.GRANTED)
Y = TensorSpec("y", "FP32", (16,))
Result = tuple[tuple[TensorSpec, ...], tuple[TensorLocation, ...]]


def one(location: TensorLocation, spec: TensorSpec = Y) -> Result:
    return (spec,), (location,)


def with_shape(shape: tuple[int, ...], location: TensorLocation = (5, 1024, 64), datatype: str = "FP32") -> Result:
    return one(location, TensorSpec("y", datatype, shape))


def error_of(result: Result, granted: Slot | None = GRANTED) -> str:
    outputs, locations = result
    words = pack_signature(ReplySignature(outputs))
    return validate_reply(InferReply(1, signature=words, locations=locations), validate_signature(words), granted)


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
    assert "malformed" in validate_reply(InferReply(1, signature=b"\xc1"), validate_signature(b"\xc1"), GRANTED)


def test_a_location_is_rejected_where_no_buffer_was_granted() -> None:
    assert "not granted" in error_of(one((5, 1024, 64)), None)
