"""Orders that are remembered by their words, as long as the model is what it was."""

from __future__ import annotations

import struct

from mmsup.gateway.infer.handler import ParsedRequest
from mmsup.gateway.infer.request_cache import CachedJsonRequest, CachedRequest, RequestCache
from mmsup.gateway.protocol.infer_request import InferRequest
from mmsup.gateway.protocol.inference_job import InferenceJob, InputTensor
from mmsup.ipc.specs import Metadata, TensorSpec

MODEL = Metadata("p", 0, (TensorSpec("a", "FP32", (2,)), TensorSpec("b", "INT32", (1,))), ())
SAME = Metadata("p", 0, (TensorSpec("a", "FP32", (2,)), TensorSpec("b", "INT32", (1,))), ())


def order(metadata: Metadata = MODEL) -> ParsedRequest:
    inputs = [InputTensor("a", "FP32", (2,), data=bytes(8)), InputTensor("b", "INT32", (1,), data=bytes(4))]
    return ParsedRequest(InferRequest(inputs, [], "7"), metadata)


def test_an_order_holds_for_its_version_and_its_metadata_alone() -> None:
    orders = RequestCache()
    known = CachedRequest(order(), "1")
    orders.put(b"words", known)
    assert orders.get(b"words", "1", MODEL) is known
    assert orders.get(b"words", "2", MODEL) is None
    assert orders.get(b"words", "1", SAME) is None, "after a reload everything is read anew"
    assert orders.get(b"other", "1", MODEL) is None


def test_other_numbers_in_the_same_text_are_the_same_order_of_other_bytes() -> None:
    known = CachedJsonRequest(order(), "1", ["b", "a"])
    made = known.with_data([b"7", b"1, 2.5"])
    assert made is not None
    assert [(each.name, bytes(each.data or b"")) for each in made.job.inputs] == [
        ("a", struct.pack("<2f", 1, 2.5)),
        ("b", struct.pack("<i", 7)),
    ]
    assert made.request.id == "7"
    assert made.job.packed_signature() == InferenceJob(made.job.inputs, (), {}).packed_signature()


def test_no_tensor_of_a_client_is_remembered() -> None:
    known = CachedJsonRequest(order(), "1", ["a", "b"])
    assert [each.data for each in known.parsed.job.inputs] == [None, None]
    assert known.parsed.request.inputs == []
    assert known.parsed.inference_count == order().inference_count


def test_numbers_that_do_not_fit_are_left_to_the_long_way() -> None:
    known = CachedJsonRequest(order(), "1", ["a", "b"])
    for lists in ([b"1", b"7"], [b"1, 2, 3", b"7"], [b"1, 2", b"7.5"], [b"1, 2", b"4294967296"], [b"1, x", b"7"]):
        assert known.with_data(lists) is None
    assert known.with_data([b"1, true", b"7"]) is None
