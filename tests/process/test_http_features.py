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

import hypothesis
import pytest

from engines.build import write_fault_model, write_identity_onnx
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
    for name in ("plain", "steady"):
        write_identity_onnx(repository, name, "FP32", dims=[-1], max_batch=4)
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
        return "a request to model brightness/1 failed: inference_failed" in lines

    assert not is_logged()
    changed = ask(server, "/v2/logging", {"log_verbose_level": 1, "log_format": "json"})
    assert (changed["log_verbose_level"], changed["log_format"], changed["log_file"]) == (1, "json", "")
    eventually(is_logged, "a line about the request that failed")
    eventually(lambda: '"text": "command logs _gateways' in server.log() or None, "a line about a command")
    assert ask(server, "/v2/logging", {"log_verbose_level": 0, "log_format": "auto"})["log_verbose_level"] == 0
    assert json.loads(curl(server, "/v2/logging")[1])["log_verbose_level"] == 0
    status, body = curl(server, "/v2/logging", data=b'{"log_file": "/etc/passwd"}')
    assert (status, json.loads(body)["code"]) == (400, "bad_request")


PATH_NAMES = {"model": "plain", "version": "1", "repository": "other", "region": "r"}
LAST = ("unload", "load", "sleep", "wake")
"""What these do, the others would notice."""


@pytest.mark.parametrize("examples", [pytest.param(3, id="few"), pytest.param(60, id="many", marks=pytest.mark.long)])
def test_no_request_that_the_description_allows_or_does_not_is_answered_as_it_does_not_say(
    server: Server, examples: int
) -> None:
    import requests
    from schemathesis import GenerationMode, openapi

    document = json.loads(curl(server, "/openapi.json")[1])
    schema = openapi.from_dict(document)
    every: Any = schema.get_all_operations()  # each read, or an error of the description
    operations = [each.ok() for each in every]
    operations.sort(key=lambda each: each.path.rpartition("/")[2] in LAST)
    host, port = server.address()
    worker = server.pid("steady")
    sent: dict[str, int] = {}
    with requests.Session() as session:
        for operation in operations:
            names = {name: value for name, value in PATH_NAMES.items() if f"{{{name}}}" in operation.path}
            body = document["paths"][operation.path][operation.method].get("requestBody", {})
            tries = [(GenerationMode.POSITIVE, names)]
            tries += [(GenerationMode.POSITIVE, {})] if names else []
            tries += [(GenerationMode.NEGATIVE, names)] if body and "schemas/Any" not in str(body) else []
            for mode, given in tries:
                strategy = operation.as_strategy(mode, path_parameters=given)
                count = _ask_all(strategy, session, f"http://{host}:{port}", examples)
                sent[operation.label] = sent.get(operation.label, 0) + count
    assert all(sent.values()), sent
    assert server.status()["brain"]["generation"] == 1
    assert server.pid("steady") == worker


def _ask_all(strategy: Any, session: Any, base_url: str, examples: int) -> int:  # of schemathesis, and of requests
    """How many were sent, each answered with a status, type and body of its description, and none with a fault of the
    server's own."""
    from schemathesis.checks import CHECKS, load_all_checks

    load_all_checks()
    names = ("status_code_conformance", "content_type_conformance", "response_schema_conformance")
    checks = [CHECKS.get_one(each) for each in names]
    count = 0

    @hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
        derandomize=True,
    )
    @hypothesis.given(strategy)
    def ask(case: Any) -> None:  # of schemathesis
        nonlocal count
        count += 1
        response = case.call(base_url=base_url, session=session, timeout=60)
        assert response.status_code != 500, response.text
        case.validate_response(response, checks=checks)

    ask()
    return count
