"""Requests to copy: a shell takes them as they are, and the parser takes what they send."""

from __future__ import annotations

import json
import shlex

import pytest

from fake_router import metadata
from mmsup.gateway.api.description.example_request import example_request
from mmsup.gateway.protocol import infer_request, json_document
from mmsup.gateway.protocol.binary_tensors import Blobs
from mmsup.ipc.specs import Metadata

HOST = "localhost:8000"


@pytest.mark.parametrize(
    "described",
    [
        metadata(("x", "FP32", (-1, 4)), ("flag", "BOOL", (1,)), ("n", "INT64", ()), max_batch_size=8),
        metadata(('it\'s "$(rm)" `x` \\', "BYTES", (2,))),
        metadata(),
    ],
)
def test_a_request_in_json_is_one_that_the_model_takes(described: Metadata) -> None:
    words = shlex.split(example_request("m", described, HOST))
    assert words[:3] == ["curl", f"{HOST}/v2/models/m/infer", "-d"]
    value = json_document.parse_json(words[3].encode())
    parsed = infer_request.parse_request(value, "m", described, Blobs(memoryview(b""), 0, 0))
    assert [each.name for each in parsed.inputs] == [each.name for each in described.inputs]
    assert json.loads(words[3])


def test_a_large_input_and_one_without_a_form_in_json_are_sent_as_bytes() -> None:
    large = example_request("m", metadata(("x", "FP32", (3, 224, 224)), max_batch_size=8), HOST)
    assert large.startswith("head -c 602112 /dev/zero | curl localhost:8000/v2/models/m/infer -H 'Inference-Header-")
    assert example_request("m", metadata(("x", "BF16", (2,))), HOST).startswith("head -c 4 /dev/zero")
    assert example_request("m", metadata(("x", "FP32", (100,)), ("y", "FP32", (1,))), HOST) == ""
    assert example_request("m", metadata(("x", "BYTES", (100,))), HOST) == ""
