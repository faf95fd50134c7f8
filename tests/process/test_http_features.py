"""What HTTP serves beside `/v2`'s core, from a running server: raw files, base64, rows, settings."""

from __future__ import annotations

import base64
import json
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engines.build import write_fault_model
from harness.server import Server, eventually, serving

pytestmark = pytest.mark.slow
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "image_model" / "brightness"
PICTURE = b"P6 2 1 255\n\xff\0\0\xff\0\xff"
BRIGHTNESS = "/v2/models/brightness/infer"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("repository")
    shutil.copytree(EXAMPLE, repository / "brightness")
    write_fault_model(repository, "fault")
    with serving(repository) as running:
        yield running


def curl(server: Server, path: str, *arguments: str, data: bytes = b"") -> tuple[int, bytes]:
    """The status and the body."""
    host, port = server.address()
    url = f"http://{host}:{port}{path}"
    sent = ("--data-binary", "@-") if data else ()
    command = ["curl", "-sS", "-w", "\n%{http_code}", *arguments, *sent, url]
    done = subprocess.run(command, input=data, capture_output=True, check=True, timeout=60)
    body, _, status = done.stdout.rpartition(b"\n")
    return int(status), body


def ask(server: Server, path: str, document: Any) -> Any:  # both JSON
    status, body = curl(server, path, data=json.dumps(document).encode())
    assert status == 200, body
    return json.loads(body)


def test_a_file_is_the_whole_body_and_the_same_in_base64(server: Server) -> None:
    status, body = curl(server, BRIGHTNESS, "-H", "Inference-Header-Content-Length: 0", data=PICTURE)
    assert (status, struct.unpack("<3f", body[-12:])) == (200, (255, 0, 127.5))
    image = {"name": "image", "datatype": "BYTES", "shape": [1, 1], "data": [base64.b64encode(PICTURE).decode()]}
    shown = ask(server, BRIGHTNESS, {"inputs": [image | {"parameters": {"content_type": "base64"}}]})
    assert shown["outputs"][0]["data"] == [255, 0, 127.5]


def test_rows_of_the_first_protocol(server: Server) -> None:
    picture = {"b64": base64.b64encode(PICTURE).decode()}
    shown = ask(server, "/v1/models/brightness:predict", {"instances": [picture, picture]})
    assert shown == {"predictions": [[255, 0, 127.5]] * 2}
    assert json.loads(curl(server, "/v1/models/brightness")[1]) == {"name": "brightness", "ready": True}
    status, body = curl(server, "/v1/models/brightness:predict", data=b'{"instances": ["no picture"]}')
    assert (status, json.loads(body)["code"]) == (500, "inference_failed")


def test_log_settings_hold_for_gateways_and_the_controller_at_once(server: Server) -> None:
    failing = json.dumps({"instances": ["no picture"]}).encode()

    def is_logged() -> bool:
        curl(server, "/v1/models/brightness:predict", data=failing)
        lines = "\n".join(server.ctl("logs", name="_gateways")["lines"])
        return "a request to model brightness 1 failed: inference_failed" in lines

    assert not is_logged()
    changed = ask(server, "/v2/logging", {"log_verbose_level": 1, "log_format": "json"})
    assert (changed["log_verbose_level"], changed["log_format"], changed["log_file"]) == (1, "json", "")
    eventually(is_logged, "a line about the request that failed")
    eventually(lambda: '"text": "command logs _gateways' in server.log() or None, "a line about a command")
    assert ask(server, "/v2/logging", {"log_verbose_level": 0, "log_format": "auto"})["log_verbose_level"] == 0
    assert json.loads(curl(server, "/v2/logging")[1])["log_verbose_level"] == 0
    status, body = curl(server, "/v2/logging", data=b'{"log_file": "/etc/passwd"}')
    assert (status, json.loads(body)["code"]) == (400, "bad_request")
