"""Orders that are remembered by their words, as long as the model is what it was."""

from __future__ import annotations

import struct

from mmsup.gateway.infer.handler import Order
from mmsup.gateway.infer.request_cache import Known, KnownText, Orders
from mmsup.gateway.protocol.infer_request import Asked
from mmsup.gateway.protocol.inference_job import Given, Run
from mmsup.ipc.specs import Metadata, TensorSpec

MODEL = Metadata("p", 0, (TensorSpec("a", "FP32", (2,)), TensorSpec("b", "INT32", (1,))), ())
SAME = Metadata("p", 0, (TensorSpec("a", "FP32", (2,)), TensorSpec("b", "INT32", (1,))), ())


def order(metadata: Metadata = MODEL) -> Order:
    inputs = [Given("a", "FP32", (2,), data=bytes(8)), Given("b", "INT32", (1,), data=bytes(4))]
    return Order(Asked(inputs, [], "7"), metadata)


def test_an_order_holds_for_its_version_and_its_metadata_alone() -> None:
    orders = Orders()
    known = Known(order(), "1")
    orders.put(b"words", known)
    assert orders.get(b"words", "1", MODEL) is known
    assert orders.get(b"words", "2", MODEL) is None
    assert orders.get(b"words", "1", SAME) is None, "after a reload everything is read anew"
    assert orders.get(b"other", "1", MODEL) is None


def test_other_numbers_in_the_same_text_are_the_same_order_of_other_bytes() -> None:
    known = KnownText(order(), "1", ["b", "a"])
    made = known.with_numbers([b"7", b"1, 2.5"])
    assert made is not None
    assert [(each.name, bytes(each.data or b"")) for each in made.run.inputs] == [
        ("a", struct.pack("<2f", 1, 2.5)),
        ("b", struct.pack("<i", 7)),
    ]
    assert made.asked.id == "7"
    assert made.run.packed() == Run(made.run.inputs, (), {}).packed()


def test_no_tensor_of_a_client_is_remembered() -> None:
    known = KnownText(order(), "1", ["a", "b"])
    assert [each.data for each in known.order.run.inputs] == [None, None]
    assert known.order.asked.inputs == []
    assert known.order.inferences == order().inferences


def test_numbers_that_do_not_fit_are_left_to_the_long_way() -> None:
    known = KnownText(order(), "1", ["a", "b"])
    for lists in ([b"1", b"7"], [b"1, 2, 3", b"7"], [b"1, 2", b"7.5"], [b"1, 2", b"4294967296"], [b"1, x", b"7"]):
        assert known.with_numbers(lists) is None
    assert known.with_numbers([b"1, true", b"7"]) is None
