"""Request signatures: parsed once, and which may share a batch."""

from __future__ import annotations

import numpy as np
import pytest

from mmsup.ipc.messages.data import InferSignature
from mmsup.ipc.specs import TensorSpec
from mmsup.ipc.transport.codec import pack_signature
from mmsup.ipc.transport.dataclass_codec import WireError
from mmsup.worker.batching.request_signature import RequestSignature, RequestSignatureCache
from request_double import signature


def x(*shape: int, name: str = "x", datatype: str = "FP32") -> TensorSpec:
    return TensorSpec(name, datatype, shape)


def parsed(of: InferSignature, cache: RequestSignatureCache) -> RequestSignature:
    return cache.get(pack_signature(of))


@pytest.mark.parametrize(
    "other",
    [
        signature((x(1, 4),), outputs=("y",)),
        signature((x(1, 4),), parameters={"temperature": 1}),
        signature((x(1, 4),), parameters={"temperature": True}),
        signature((x(1, 5),)),
        signature((x(1, 4, datatype="FP64"),)),
        signature((x(1, 4, name="z"),)),
        signature((x(),)),
        signature((x(0, 4),)),
        signature(()),
        signature((x(1, 4), x(2, name="z"))),
    ],
)
def test_only_requests_that_differ_in_the_batch_axis_alone_share_a_batch(other: InferSignature) -> None:
    cache = RequestSignatureCache()
    one = parsed(signature((x(1, 4),)), cache).batch_key
    assert one is not None
    assert parsed(signature((x(3, 4),)), cache).batch_key is one
    assert parsed(other, cache).batch_key is not one


def test_value_and_type_of_a_parameter_separate_requests() -> None:
    cache = RequestSignatureCache()
    keys = {parsed(signature((x(1, 4),), parameters={"p": value}), cache).batch_key for value in (1, True, 1.0, "1", 2)}
    assert len(keys) == 5


def test_a_request_whose_inputs_differ_in_batch_length_runs_alone() -> None:
    assert parsed(signature((x(1, 4), x(2, 4, name="z"))), RequestSignatureCache()).batch_key is None


def test_a_priority_is_parsed_and_does_not_separate_requests() -> None:
    cache = RequestSignatureCache()
    low, high = (parsed(InferSignature((x(1, 4),), (), {}, priority), cache) for priority in (9, 1))
    assert (low.priority, high.priority) == (9, 1)
    assert low.batch_key is high.batch_key


def test_a_request_that_runs_alone_has_no_batch_key() -> None:
    cache = RequestSignatureCache()
    alone, other = parsed(signature(runs_alone=True), cache), parsed(signature(), cache)
    assert (alone.batch_key, alone.runs_alone) == (None, True)
    assert other.batch_key is not None
    assert not other.runs_alone


def test_rows_and_inputs_are_those_of_the_message() -> None:
    found = parsed(signature((x(3, 4), TensorSpec("t", "BYTES", (3,)))), RequestSignatureCache())
    assert found.rows == 3
    assert [(each.name, each.dtype, each.size_bytes) for each in found.inputs] == [
        ("x", np.dtype("<f4"), 48),
        ("t", None, None),
    ]
    assert parsed(signature(()), RequestSignatureCache()).rows == 1


def test_the_same_bytes_are_parsed_once_and_malformed_ones_are_refused() -> None:
    cache = RequestSignatureCache()
    packed = pack_signature(signature())
    assert cache.get(packed) is cache.get(bytes(packed))
    with pytest.raises(WireError):
        cache.get(b"\x93nothing")
