"""Replies said again with other outputs are, to the byte, the replies made anew."""

from __future__ import annotations

import numpy as np
import pytest

from mmsup.gateway.dispatch.reply_validation import ValidatedSignature, validate_signature
from mmsup.gateway.http import response_bytes
from mmsup.gateway.infer.response_template import ResponseTemplate, make_template
from mmsup.gateway.protocol.infer_request import RequestedOutput
from mmsup.gateway.protocol.infer_response import InferResponse, ResponseContext, build_response
from mmsup.gateway.protocol.inference_job import OutputTensor
from mmsup.ipc.messages.data import ReplySignature
from mmsup.ipc.specs import TensorSpec
from mmsup.ipc.transport.codec import pack_signature

Y, Z = TensorSpec("y", "FP32", (2,)), TensorSpec('z"data":[1]', "INT64", (1, 3))


def said(*specs: TensorSpec) -> ValidatedSignature:
    return validate_signature(pack_signature(ReplySignature(specs)))


def places(seed: int, *specs: TensorSpec) -> tuple[bytes, ...]:
    chance = np.random.default_rng(seed)
    floats, numbers = chance.standard_normal(2, np.float32), chance.integers(-(1 << 40), 1 << 40, (1, 3))
    return tuple(floats.tobytes() if each.datatype == "FP32" else numbers.tobytes() for each in specs)


def anew(wanted: list[RequestedOutput], data: tuple[bytes, ...]) -> InferResponse:
    outputs = [
        OutputTensor(each.spec.name, each.spec.datatype, each.spec.shape, memoryview(part))
        for each, part in zip(wanted, data, strict=True)
    ]
    return build_response(ResponseContext("m", "3", "id 7", batched=False, labels={}), wanted, outputs)


def learned(wanted: list[RequestedOutput], seed: int = 1) -> tuple[ResponseTemplate | None, tuple[TensorSpec, ...]]:
    specs = tuple(each.spec for each in wanted)
    data = places(seed, *specs)
    return make_template(said(*specs), wanted, anew(wanted, data), data), specs


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("specs", [(Y,), (Y, Z), (Z, Y)])
def test_a_familiar_reply_is_the_reply_made_anew(specs: tuple[TensorSpec, ...], binary: bool) -> None:
    wanted = [RequestedOutput(each, binary) for each in specs]
    known, _ = learned(wanted)
    assert known is not None
    for seed in range(2, 40):
        data = places(seed, *specs)
        start, body = response_bytes.inference_parts(anew(wanted, data), {})
        expected = b"".join((start, response_bytes.head_end(), *body))
        got = known.render(data)
        assert got.partition(b"Date: ")[0] == expected.partition(b"Date: ")[0]
        assert got.partition(b"\r\n\r\n")[2] == expected.partition(b"\r\n\r\n")[2]


def test_it_fits_the_same_words_and_inline_outputs_alone() -> None:
    known, specs = learned([RequestedOutput(Y, binary=True)])
    assert known is not None
    assert known.matches(said(*specs), (b"12345678",))
    assert not known.matches(said(TensorSpec("y", "FP32", (3,))), (bytes(12),))
    assert not known.matches(said(*specs), ((0, 0, 8),))


def test_what_changes_more_than_its_outputs_is_not_familiar() -> None:
    strings = TensorSpec("s", "BYTES", (1,))
    data = (b"\1\0\0\0a",)
    assert (
        make_template(
            said(strings),
            [RequestedOutput(strings, binary=True)],
            anew([RequestedOutput(strings, binary=True)], data),
            data,
        )
        is None
    )
    assert learned([RequestedOutput(Y, binary=True), RequestedOutput(Z, binary=False)])[0] is None
    top = [RequestedOutput(Y, binary=False, classes=1)]
    assert make_template(said(Y), top, anew(top, places(1, Y)), places(1, Y)) is None
    swapped = [RequestedOutput(Z, binary=True), RequestedOutput(Y, binary=True)]
    assert make_template(said(Y, Z), swapped, anew(swapped, places(1, Z, Y)), places(1, Y, Z)) is None
    large = [RequestedOutput(Y, binary=True)]
    assert make_template(said(Y), large, anew(large, places(1, Y)), ((0, 0, 8),)) is None
