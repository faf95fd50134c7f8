"""Existing clients, unchanged: tritonclient and curl."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton

from engines.build import write_fault_model, write_identity_onnx, write_torchscript
from harness.server import Server, serving

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("repository")
    for datatype in ("FP32", "INT64", "BYTES", "FP16", "BOOL"):
        write_identity_onnx(repository, f"identity_{datatype.lower()}", datatype, dims=[-1], max_batch=4)
    write_torchscript(repository, "torchscript", dims=[-1], max_batch=4)
    write_fault_model(repository, "python")
    with serving(repository) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[triton.InferenceServerClient]:
    host, port = server.address()
    with triton.InferenceServerClient(f"{host}:{port}") as made:
        yield made


def test_health_and_metadata(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("identity_fp32")
    assert client.is_model_ready("identity_fp32", "1")
    assert not client.is_model_ready("no_such_model")
    assert client.get_server_metadata()["name"]
    metadata = client.get_model_metadata("identity_fp32")
    assert metadata["name"] == "identity_fp32"
    assert metadata["versions"] == ["1"]
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, -1]}]
    assert client.get_model_config("identity_fp32")["max_batch_size"] == 4
    assert client.get_inference_statistics("identity_fp32")["model_stats"][0]["name"] == "identity_fp32"


VALUES: dict[str, Any] = {  # arrays of several element types
    "FP32": np.array([[1.5, -2.25, 3e-40]], dtype=np.float32),
    "INT64": np.array([[2**62, -1, 0]], dtype=np.int64),
    "BYTES": np.array([["grüße".encode(), b"", b"\x00 is text too"]], dtype=np.object_),
    "FP16": np.array([[0.5, 65504, -0.0]], dtype=np.float16),
    "BOOL": np.array([[True, False, True]]),
}


@pytest.mark.parametrize("datatype", sorted(VALUES))
@pytest.mark.parametrize("binary", [True, False])
def test_inference_in_json_and_binary(client: triton.InferenceServerClient, datatype: str, binary: bool) -> None:
    value = VALUES[datatype]
    if not binary and datatype == "FP16":
        pytest.skip("FP16 has no JSON form")
    given = triton.InferInput("x", list(value.shape), datatype)
    given.set_data_from_numpy(value, binary_data=binary)
    wanted = triton.InferRequestedOutput("y", binary_data=binary)
    result = client.infer(f"identity_{datatype.lower()}", [given], outputs=[wanted], request_id="7")
    assert result.get_response()["id"] == "7"
    answer = result.as_numpy("y")
    assert answer is not None
    if datatype == "BYTES" and not binary:
        value = np.vectorize(bytes.decode, otypes=[object])(value)  # JSON has text, and the client leaves it so
    assert answer.tolist() == value.tolist()


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compression_both_ways(client: triton.InferenceServerClient, algorithm: str) -> None:
    value = np.zeros((1, 5000), dtype=np.float32)
    given = triton.InferInput("x", [1, 5000], "FP32")
    given.set_data_from_numpy(value)
    result = client.infer(
        "identity_fp32",
        [given],
        request_compression_algorithm=algorithm,
        response_compression_algorithm=algorithm,
    )
    answer = result.as_numpy("y")
    assert answer is not None
    assert (answer == value).all()


def test_a_torch_model_answers_too(client: triton.InferenceServerClient) -> None:
    value = np.array([[1.0, 2.0]], dtype=np.float32)
    given = triton.InferInput("INPUT__0", [1, 2], "FP32")
    given.set_data_from_numpy(value)
    answer = client.infer("torchscript", [given]).as_numpy("OUTPUT__0")
    assert answer is not None
    assert answer.tolist() == value.tolist()


def test_unload_and_load(client: triton.InferenceServerClient) -> None:
    index = {each["name"]: each for each in client.get_model_repository_index()}
    assert index["identity_bool"]["state"] == "READY"
    client.unload_model("identity_bool")
    assert not client.is_model_ready("identity_bool")
    client.load_model("identity_bool")
    assert client.is_model_ready("identity_bool")
    with pytest.raises(triton.InferenceServerException, match="failed to load 'nothing'"):
        client.load_model("nothing")


def test_errors_have_their_text(client: triton.InferenceServerClient) -> None:
    given = triton.InferInput("wrong", [1, 1], "FP32")
    given.set_data_from_numpy(np.zeros((1, 1), dtype=np.float32))
    with pytest.raises(triton.InferenceServerException, match="identity_fp32"):
        client.infer("identity_fp32", [given])
    with pytest.raises(triton.InferenceServerException, match="Request for unknown model"):
        client.infer("no_such_model", [given])


def curl(server: Server, path: str, *arguments: str) -> str:
    program = shutil.which("curl")
    if program is None:
        pytest.skip("curl is not installed")
    host, port = server.address()
    command = [program, "--silent", "--show-error", "--max-time", "30", *arguments, f"http://{host}:{port}{path}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_curl_with_its_default_content_type(server: Server) -> None:
    body = '{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,2]}]}'
    reply = json.loads(curl(server, "/v2/models/identity_fp32/infer", "-d", body))
    assert reply["outputs"][0]["data"] == [1.0, 2.0]


def test_curl_asks_before_a_large_upload_and_is_told_to_go_on(server: Server, tmp_path: object) -> None:
    numbers = ",".join(["1"] * 400_000)
    body = f'{{"inputs":[{{"name":"x","shape":[1,400000],"datatype":"FP32","data":[{numbers}]}}]}}'
    process = subprocess.run(
        [
            shutil.which("curl") or "curl",
            *("--silent", "--show-error", "--max-time", "60", "--data-binary", "@-", "-H", "Expect: 100-continue"),
            "http://{}:{}/v2/models/identity_fp32/infer".format(*server.address()),
        ],
        input=body,
        check=True,
        capture_output=True,
        text=True,
    )
    assert json.loads(process.stdout)["outputs"][0]["shape"] == [1, 400_000]


def test_curl_head_and_an_unknown_path(server: Server) -> None:
    assert "200" in curl(server, "/v2/health/ready", "--head").splitlines()[0]
    assert json.loads(curl(server, "/v2/nothing"))["error"]
