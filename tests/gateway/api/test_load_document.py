"""Load requests with files in their JSON: what is cut out is what the parser would have seen."""

from __future__ import annotations

import base64
import json
import os
from typing import Any

import pytest

from mmsup.gateway.api.load_document import load_document
from mmsup.ipc.errors import CallerError


def read(document: Any) -> dict[str, Any]:
    return load_document(bytearray(json.dumps(document).encode()))


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.mark.parametrize("size", [0, 1, 2, 3, 1 << 20, (3 << 20) + 1])
def test_a_file_is_its_bytes(size: int) -> None:
    data = os.urandom(size)
    given = {"parameters": {"config": '{"a": "file:1/x"}', "file:1/m.onnx": text(data), "n": 1}}
    assert read(given) == {"parameters": {"config": '{"a": "file:1/x"}', "file:1/m.onnx": data, "n": 1}}


def test_what_only_looks_like_a_file_is_left_as_it_is() -> None:
    for parameters in ({"x": "file:1/a"}, {"x": '"file:1/a": "QQ=="'}, {"file:1/a": 1}, {"x": '\\"file:1/a":"'}, {}):
        assert read({"parameters": parameters}) == {"parameters": parameters}
    assert load_document(bytearray(b" ")) == {}
    assert read({}) == {}


def test_a_slash_may_be_escaped() -> None:
    body = bytearray(b'{"parameters": {"file:1/a": "\\/\\/8="}}')
    assert load_document(body) == {"parameters": {"file:1/a": b"\xff\xff"}}


def test_several_files_are_kept_apart() -> None:
    given = {f"file:{each}/m.onnx": text(bytes([each]) * each) for each in range(1, 60)}
    spaced = bytearray(json.dumps({"parameters": given}, indent=1, separators=(",", " : ")).encode())
    assert load_document(spaced)["parameters"] == {f"file:{each}/m.onnx": bytes([each]) * each for each in range(1, 60)}


@pytest.mark.parametrize(
    "body",
    [
        b"[]", b'{"parameters": {"file:1/a": "QQ=="', b'{"parameters": {"file:1/a": "QQ==', b'{"file:1/a": "QQ=="}',
        b'{"parameters": {"file:1/a": "Q"}}', b'{"parameters": {"file:1/a": "Q\\nQ="}}', b'{"a":"x"file:1/a":"QQ=="}',
        b'{"parameters": {' + b",".join(b'"file:%d/a": ""' % each for each in range(1, 70)) + b"}}",
        b'{"parameters": {"file:1/a": "' + b"QQ==" * (1 << 19) + b'"}}',
    ],
)  # fmt: skip
def test_what_is_no_document_is_refused(body: bytes) -> None:
    with pytest.raises(CallerError) as caught:
        load_document(bytearray(body))
    assert caught.value.code == "bad_request"
