"""Parsed requests are cached by their text, as long as the model is the same."""

from __future__ import annotations

import struct
from typing import Any

from mmsup.gateway.infer.handler import ParsedRequest
from mmsup.gateway.infer.known_request import KnownJsonRequest, KnownRequest
from mmsup.gateway.infer.known_request_cache import KnownRequestCache
from mmsup.gateway.protocol.infer_request import InferRequest
from mmsup.gateway.protocol.inference_job import InferenceJob, InputTensor
from mmsup.ipc.specs import Metadata, TensorSpec

MODEL = Metadata("p", 0, (TensorSpec("a", "FP32", (2,)), TensorSpec("b", "INT32", (1,))), ())
SAME = Metadata("p", 0, (TensorSpec("a", "FP32", (2,)), TensorSpec("b", "INT32", (1,))), ())


def parsed(metadata: Metadata = MODEL) -> ParsedRequest:
    inputs = [InputTensor("a", "FP32", (2,), data=bytes(8)), InputTensor("b", "INT32", (1,), data=bytes(4))]
    return ParsedRequest(InferRequest(inputs, [], "7"), metadata)


def test_a_cached_request_is_valid_only_for_its_version_and_metadata() -> None:
    cache = KnownRequestCache(Any, Any, may_pack=False)  # type: ignore[arg-type] # only for what is packed
    cached = KnownRequest(parsed(), "1")
    cache.put(b"text", cached)
    assert cache.get(b"text", "1", MODEL) is cached
    assert cache.get(b"text", "2", MODEL) is None
    assert cache.get(b"text", "1", SAME) is None, "after a reload everything is parsed anew"
    assert cache.get(b"other", "1", MODEL) is None


def test_other_numbers_in_the_same_text_give_the_same_request_with_other_bytes() -> None:
    cached = KnownJsonRequest(parsed(), "1", ["b", "a"])
    other = cached.with_data([b"7", b"1, 2.5"])
    assert other is not None
    assert [(each.name, bytes(each.data or b"")) for each in other.job.inputs] == [
        ("a", struct.pack("<2f", 1, 2.5)),
        ("b", struct.pack("<i", 7)),
    ]
    assert other.request.id == "7"
    assert other.job.packed_signature() == InferenceJob(other.job.inputs, (), {}).packed_signature()


def test_no_tensor_of_a_client_is_cached() -> None:
    cached = KnownJsonRequest(parsed(), "1", ["a", "b"])
    assert [each.data for each in cached.parsed.job.inputs] == [None, None]
    assert cached.parsed.request.inputs == []
    assert cached.parsed.inference_count == parsed().inference_count


def test_numbers_that_do_not_fit_are_left_to_the_full_parser() -> None:
    cached = KnownJsonRequest(parsed(), "1", ["a", "b"])
    for lists in ([b"1", b"7"], [b"1, 2, 3", b"7"], [b"1, 2", b"7.5"], [b"1, 2", b"4294967296"], [b"1, x", b"7"]):
        assert cached.with_data(lists) is None
    assert cached.with_data([b"1, true", b"7"]) is None
