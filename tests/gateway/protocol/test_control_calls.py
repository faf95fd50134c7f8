"""What a request to load holds, and what of it is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mmsup.gateway.protocol.control_calls import FILES_LIMIT, LoadRequest, load_request
from mmsup.ipc.errors import MmsupError
from mmsup.ipc.messages.gateway_control import ConfigureGateway
from mmsup.ipc.messages.handshake import WIRE_VERSION

CONFIG = {"config": "{}"}


def read(given: dict[str, Any], *, uploads: bool = True, code: bool = False) -> LoadRequest:
    configure = ConfigureGateway(WIRE_VERSION, 0, 1, "mmsup", "1", 1, 1, 1.0, 1, 1)
    return load_request("m", given, replace(configure, allow_model_uploads=uploads, allow_code_uploads=code))


def test_files_come_as_bytes_or_in_base64() -> None:
    given = {**CONFIG, "x": 1, "file:1/model.onnx": "AAE=", "file:2/model.onnx": b"\2"}
    assert read(given) == LoadRequest({**CONFIG, "x": 1}, {"1/model.onnx": b"\0\1", "2/model.onnx": b"\2"})
    assert read({"file:1/model.py": b"", **CONFIG}, code=True).files == {"1/model.py": b""}
    assert read({"x": 1}, uploads=False) == LoadRequest({"x": 1}, {})


@pytest.mark.parametrize(
    ("given", "code", "says"),
    [
        ({"file:1/model.py": b""}, "forbidden", "--allow-code-uploads"),
        ({"file:1/model.pt": b""}, "forbidden", "--allow-code-uploads"),
        ({"file:1/model.onnx": b""}, "bad_request", "the parameter 'config' is needed"),
        ({"file:1/model.onnx": "AA=", **CONFIG}, "bad_request", "is not in base64"),
        ({"file:1/model.onnx": "é", **CONFIG}, "bad_request", "is not in base64"),
        ({"file:1/model.onnx": 1, **CONFIG}, "bad_request", "is not in base64"),
        ({f"file:{each}/model.onnx": b"" for each in range(1, FILES_LIMIT + 2)} | CONFIG, "bad_request", "at most 64"),
        ({f"file:1/{'é' * 128}.onnx": b""}, "bad_request", "failed to load 'm', failed to poll from model repository"),
        ({f"file:{'1' * 256}/m.onnx": b""}, "bad_request", "failed to load 'm', failed to poll from model repository"),
    ]
    + [
        ({f"file:{name}": b"", **CONFIG}, "bad_request", "is no VERSION/FILE")
        for name in (
            "", "model.onnx", "/model.onnx", "0/m.onnx", "01/m.onnx", "1/", "1/..", "1/.onnx", "1/a/b.onnx",
            "../1/m.onnx", "1/../m.onnx", "1/m\0.onnx", "1/m\n.onnx", "1//m.onnx", "1/m/../../m.onnx", "-1/m.onnx",
            "1/\udcff.onnx", "a/m.onnx", "\u0661/m.onnx",
        )
    ],
)  # fmt: skip
def test_what_is_no_model_is_refused(given: dict[str, Any], code: str, says: str) -> None:
    is_name = "VERSION/FILE" in says
    with pytest.raises(MmsupError) as caught:
        read(given, code=is_name)
    assert (caught.value.code, says in caught.value.text) == (code, True), caught.value.text


def test_nothing_is_read_of_files_that_may_not_be_sent() -> None:
    with pytest.raises(MmsupError, match="files may not be sent to this server"):
        read({"file:../../x": "?"}, uploads=False, code=True)
