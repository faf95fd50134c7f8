"""No number of a worker's reply is believed."""

from __future__ import annotations

import pytest

from mmsup.gateway.dispatch.reply_validation import validate_reply, validate_signature
from mmsup.ipc.memory.arena import Slot, SlotState
from mmsup.ipc.messages.data import InferReply, ReplySignature, TensorLocation
from mmsup.ipc.specs import TensorSpec
from mmsup.ipc.transport.codec import pack_signature

GRANTED = Slot(5, 1024, 4096, memoryview(bytearray(4096)), SlotState.GRANTED)
Y = TensorSpec("y", "FP32", (16,))
Said = tuple[tuple[TensorSpec, ...], tuple[TensorLocation, ...]]


def one(place: TensorLocation, spec: TensorSpec = Y) -> Said:
    return (spec,), (place,)


def shaped(shape: tuple[int, ...], place: TensorLocation = (5, 1024, 64), datatype: str = "FP32") -> Said:
    return one(place, TensorSpec("y", datatype, shape))


def fault(said: Said, granted: Slot | None = GRANTED) -> str:
    outputs, places = said
    words = pack_signature(ReplySignature(outputs))
    return validate_reply(InferReply(1, signature=words, locations=places), validate_signature(words), granted)


@pytest.mark.parametrize(
    "good",
    [
        one((5, 1024, 64)),
        one((5, 1024 + 4096 - 64, 64)),
        shaped((2,), b"12345678"),
        shaped((1,), b"\1\0\0\0a", "BYTES"),
        shaped((0, 4), b""),
        ((), ()),
    ],
)
def test_an_honest_reply_has_no_fault(good: Said) -> None:
    assert fault(good) == ""


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        (one((6, 1024, 64)), "not granted"),
        (one((5, 1023, 64)), "outside"),
        (one((5, 1024 + 4096 - 63, 64)), "outside"),
        (one((5, 2**63, 64)), "outside"),
        (one((5, 1024, -64)), "negative"),
        (one((5, 1024, 60)), "60 bytes where its shape has 64"),
        (shaped((2**62, 2**62)), "bytes where its shape has"),
        (shaped((-16,)), "shape"),
        (shaped((1,) * 17), "shape"),
        (shaped((1,), datatype="FP31"), "datatype"),
        (shaped((2,), b"1234"), "4 bytes where its shape has 8"),
        (((Y, Y), ((5, 1024, 64), (5, 1024, 64))), "twice"),
        (((Y,), ()), "0 outputs where its words have 1"),
        (((), (b"",)), "1 outputs where its words have 0"),
    ],
)
def test_a_reply_that_lies_is_found_out(bad: Said, word: str) -> None:
    assert word in fault(bad)


@pytest.mark.parametrize("need", [-1, 2**50])
def test_a_need_that_cannot_be_is_found_out(need: int) -> None:
    assert "bytes" in validate_reply(InferReply(1, needed_bytes=need), None, GRANTED)


def test_a_need_or_an_error_alone_is_an_answer_and_nothing_is_none() -> None:
    assert validate_reply(InferReply(1, needed_bytes=5000), None, None) == ""
    assert validate_reply(InferReply(1, "inference_failed", "why"), None, None) == ""
    assert validate_reply(InferReply(1), None, None) == "it says nothing"


def test_words_that_are_none_are_found_out() -> None:
    assert "words" in validate_reply(InferReply(1, signature=b"\xc1"), validate_signature(b"\xc1"), GRANTED)


def test_memory_cannot_be_named_where_none_was_granted() -> None:
    assert "not granted" in fault(one((5, 1024, 64)), None)
