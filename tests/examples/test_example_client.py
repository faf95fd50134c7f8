from __future__ import annotations

import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from example_files import EXAMPLES, example


def test_a_request_is_a_head_and_the_bytes_it_names() -> None:
    x, flags = np.arange(6, dtype=np.float32).reshape(2, 3).T, np.array([True, False])
    with example("client") as client:
        head, body = client.request({"x": x, "flags": flags})
    described = json.loads(head)["inputs"]
    assert [(each["name"], each["datatype"], each["shape"]) for each in described] == [
        ("x", "FP32", [3, 2]),
        ("flags", "BOOL", [2]),
    ]
    sizes = [each["parameters"]["binary_data_size"] for each in described]
    assert sizes == [24, 2]
    assert body == np.ascontiguousarray(x).tobytes() + b"\x01\x00"


def test_a_reply_is_read_wherever_its_tensors_stand() -> None:
    label = np.array([3, 4], dtype=np.int64)
    outputs = [
        {"name": "p", "datatype": "FP32", "shape": [1, 2], "data": [0.25, 0.75]},
        {"name": "label", "datatype": "INT64", "shape": [2], "parameters": {"binary_data_size": 16}},
    ]
    head = json.dumps({"outputs": outputs}).encode()
    with example("client") as client:
        found = client.reply(head + label.tobytes(), len(head))
    assert found["p"].tolist() == [[0.25, 0.75]]
    assert found["label"].tolist() == [3, 4]


def test_a_label_is_the_models_own_or_the_most_probable() -> None:
    with example("client") as client:
        assert client.labels({"label": np.array([[7]])}).tolist() == [7]
        assert client.labels({"probabilities": np.array([[0.1, 0.9], [0.8, 0.2]])}).tolist() == [1, 0]


def test_a_tensor_without_a_datatype_of_the_protocol_is_not_sent() -> None:
    with example("client") as client, pytest.raises(KeyError):
        client.request({"x": np.zeros(2, dtype=np.complex64)})


def said(*arguments: str) -> str:
    """What the program writes to standard error when it fails."""
    command = [sys.executable, str(EXAMPLES / "client.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    return done.stderr


@pytest.fixture
def held_out(tmp_path: Path) -> str:
    np.savez(tmp_path / "held_out.npz", x=np.zeros((2, 64), np.float32), y=np.zeros(2, np.int64))
    return str(tmp_path / "held_out.npz")


@pytest.fixture
def address() -> Iterator[str]:
    """Of a server that knows no model."""

    class NoModels(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            body = b'{"code": "model_not_found", "error": "no model nobody"}'
            self.send_response(404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), NoModels) as server:
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        serving.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        serving.join()


@pytest.mark.slow
def test_a_directory_instead_of_the_samples_is_named_in_one_line(tmp_path: Path) -> None:
    told = said(str(tmp_path))
    assert told.startswith(f"error: {tmp_path} is not a held_out.npz")
    assert told.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--triton"]], ids=["own", "triton"])
def test_an_unknown_model_is_named_in_one_line(held_out: str, address: str, flags: list[str]) -> None:
    told = said(held_out, "--model", "nobody", "--url", address, *flags)
    assert "no model nobody" in told
    assert told.count("\n") == 1


@pytest.mark.slow
def test_a_server_that_is_not_there_is_named_in_one_line(held_out: str) -> None:
    told = said(held_out, "--url", "127.0.0.1:1")
    assert told.startswith("error: no server at 127.0.0.1:1")
    assert told.count("\n") == 1


def test_without_tritonclient_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tritonclient.http", None)
    with example("client") as client, pytest.raises(client.UnusableError, match=r"pip install 'tritonclient\[http\]'"):
        client.by_triton("127.0.0.1:1", "nobody", np.zeros((1, 64), np.float32))
