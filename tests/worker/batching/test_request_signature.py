"""What requests of the same words have in common; which may share a run."""

from __future__ import annotations

import numpy as np
import pytest

from mmsup.ipc.messages.data import InferSignature
from mmsup.ipc.specs import TensorSpec
from mmsup.ipc.transport.codec import pack_signature
from mmsup.ipc.transport.dataclass_codec import WireError
from mmsup.worker.batching.request_signature import RequestSignature, RequestSignatureCache
from work_double import form


def x(*shape: int, name: str = "x", datatype: str = "FP32") -> TensorSpec:
    return TensorSpec(name, datatype, shape)


def kind(of: InferSignature, known: RequestSignatureCache) -> RequestSignature:
    return known.get(pack_signature(of))


@pytest.mark.parametrize(
    "other",
    [
        form((x(1, 4),), outputs=("y",)),
        form((x(1, 4),), parameters={"temperature": 1}),
        form((x(1, 4),), parameters={"temperature": True}),
        form((x(1, 5),)),
        form((x(1, 4, datatype="FP64"),)),
        form((x(1, 4, name="z"),)),
        form((x(),)),
        form((x(0, 4),)),
        form(()),
        form((x(1, 4), x(2, name="z"))),
    ],
)
def test_only_requests_alike_but_for_the_batch_axis_share_a_run(other: InferSignature) -> None:
    known = RequestSignatureCache()
    one = kind(form((x(1, 4),)), known).group
    assert one is not None
    assert kind(form((x(3, 4),)), known).group is one
    assert kind(other, known).group is not one


def test_the_value_of_a_parameter_and_its_type_tell_requests_apart() -> None:
    known = RequestSignatureCache()
    groups = {kind(form((x(1, 4),), parameters={"p": value}), known).group for value in (1, True, 1.0, "1", 2)}
    assert len(groups) == 5


def test_inputs_of_different_batch_lengths_in_one_request_keep_it_alone() -> None:
    assert kind(form((x(1, 4), x(2, 4, name="z"))), RequestSignatureCache()).group is None


def test_a_priority_is_read_and_parts_nobody() -> None:
    known = RequestSignatureCache()
    low, high = (kind(InferSignature((x(1, 4),), (), {}, priority), known) for priority in (9, 1))
    assert (low.priority, high.priority) == (9, 1)
    assert low.group is high.group


def test_a_request_that_is_to_be_alone_has_no_group_and_says_so() -> None:
    known = RequestSignatureCache()
    alone, other = kind(form(alone=True), known), kind(form(), known)
    assert (alone.group, alone.alone) == (None, True)
    assert other.group is not None
    assert not other.alone


def test_rows_and_inputs_are_those_of_the_words() -> None:
    found = kind(form((x(3, 4), TensorSpec("t", "BYTES", (3,)))), RequestSignatureCache())
    assert found.rows == 3
    assert [(each.name, each.dtype, each.size) for each in found.inputs] == [
        ("x", np.dtype("<f4"), 48),
        ("t", None, None),
    ]
    assert kind(form(()), RequestSignatureCache()).rows == 1


def test_the_same_words_are_read_once_and_what_is_none_is_refused() -> None:
    known = RequestSignatureCache()
    words = pack_signature(form())
    assert known.get(words) is known.get(bytes(words))
    with pytest.raises(WireError):
        known.get(b"\x93nothing")
