"""A template with other outputs gives, byte for byte, the response that would be built anew."""

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
from mmsup.ipc.specs import Metadata, TensorSpec
from mmsup.ipc.transport.codec import pack_signature

Y, Z = TensorSpec("y", "FP32", (2,)), TensorSpec('z"data":[1]', "INT64", (1, 3))


def signature(*specs: TensorSpec) -> ValidatedSignature:
    return validate_signature(pack_signature(ReplySignature(specs)), Metadata("p", 0, (), specs))


def data_of(seed: int, *specs: TensorSpec) -> tuple[bytes, ...]:
    chance = np.random.default_rng(seed)
    floats, numbers = chance.standard_normal(2, np.float32), chance.integers(-(1 << 40), 1 << 40, (1, 3))
    return tuple(floats.tobytes() if each.datatype == "FP32" else numbers.tobytes() for each in specs)


def built(requested: list[RequestedOutput], data: tuple[bytes, ...], json_id: str = "id-7") -> InferResponse:
    outputs = [
        OutputTensor(each.spec.name, each.spec.datatype, each.spec.shape, memoryview(part))
        for each, part in zip(requested, data, strict=True)
    ]
    return build_response(ResponseContext("m", "3", json_id, batched=False, labels={}), requested, outputs)


def template_of(
    requested: list[RequestedOutput], seed: int = 1
) -> tuple[ResponseTemplate | None, tuple[TensorSpec, ...]]:
    specs = tuple(each.spec for each in requested)
    data = data_of(seed, *specs)
    return make_template(signature(*specs), requested, built(requested, data), data, "id-7"), specs


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("specs", [(Y,), (Y, Z), (Z, Y)])
def test_a_rendered_template_is_the_response_built_anew(specs: tuple[TensorSpec, ...], binary: bool) -> None:
    requested = [RequestedOutput(each, binary) for each in specs]
    template, _ = template_of(requested)
    assert template is not None
    for seed in range(2, 40):
        data = data_of(seed, *specs)
        echo_id = "r7" if seed % 3 else ""
        start, body = response_bytes.inference_parts(
            built(requested, data, f"i:{seed:02}"), {"X-Request-Id": echo_id} if echo_id else {}
        )
        expected = b"".join((start, response_bytes.head_end(), *body))
        got = template.render(data, response_bytes.head_end(), f"i:{seed:02}", echo_id)
        assert got.partition(b"Date: ")[0] == expected.partition(b"Date: ")[0]
        assert got.partition(b"\r\n\r\n")[2] == expected.partition(b"\r\n\r\n")[2]


def test_a_template_matches_only_the_same_signature_and_inline_outputs() -> None:
    template, specs = template_of([RequestedOutput(Y, binary=True)])
    assert template is not None
    assert template.matches(signature(*specs), (b"12345678",))
    assert not template.matches(signature(TensorSpec("y", "FP32", (3,))), (bytes(12),))
    assert not template.matches(signature(*specs), ((0, 0, 8),))


def test_a_response_in_which_more_than_outputs_may_change_has_no_template() -> None:
    strings = TensorSpec("s", "BYTES", (1,))
    data = (b"\1\0\0\0a",)
    assert (
        make_template(
            signature(strings),
            [RequestedOutput(strings, binary=True)],
            built([RequestedOutput(strings, binary=True)], data),
            data,
        )
        is None
    )
    assert template_of([RequestedOutput(Y, binary=True), RequestedOutput(Z, binary=False)])[0] is None
    top = [RequestedOutput(Y, binary=False, classes=1)]
    assert make_template(signature(Y), top, built(top, data_of(1, Y)), data_of(1, Y)) is None
    swapped = [RequestedOutput(Z, binary=True), RequestedOutput(Y, binary=True)]
    assert make_template(signature(Y, Z), swapped, built(swapped, data_of(1, Z, Y)), data_of(1, Y, Z)) is None
    large = [RequestedOutput(Y, binary=True)]
    assert make_template(signature(Y), large, built(large, data_of(1, Y)), ((0, 0, 8),)) is None
