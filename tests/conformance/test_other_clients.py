"""Clients of other projects in processes of their own, unchanged: KServe's, `mlserver infer`, perf_analyzer.

They run with `--other-clients DIRECTORY`, which other_clients.py fills.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from engines.build import write_python
from harness.rpc_calls import target
from harness.server import Server, eventually, serving
from mmsup.ipc.specs import TensorSpec

pytestmark = pytest.mark.slow
SAME = "class Model:\n    def infer(self, inputs):\n        return {'y': inputs['x']}\n"
KSERVE = """\
import asyncio, sys
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig

async def main(http, rpc):
    x = InferInput("x", [1, 4], "FP32")
    x.set_data_from_numpy(np.array([[1, 2, 3, 4]], np.float32), binary_data=BINARY)
    request = InferRequest(model_name="same", infer_inputs=[x], request_id="7")
    if rpc:
        client = InferenceGRPCClient(rpc)
        assert await client.is_server_live() and await client.is_server_ready()
        assert await client.is_model_ready("same")
        found = await client.infer(request)
        await client.close()
    else:
        client = InferenceRESTClient(RESTConfig(protocol="v2"))
        assert await client.is_server_live(http) and await client.is_server_ready(http)
        assert await client.is_model_ready(http, "same")
        found = await client.infer(http, request, model_name="same")
        await client.close()
    assert (found.id, found.model_name) == ("7", "same"), found
    assert found.outputs[0].as_numpy().tolist() == [[1, 2, 3, 4]], found.outputs

asyncio.run(main(*sys.argv[1:]))
"""
PERF_WAYS = {
    "http": ["-i", "http"],
    "grpc": ["-i", "grpc"],
    "grpc stream": ["-i", "grpc", "--streaming"],
    "shared memory": ["-i", "grpc", "--shared-memory", "system", "--output-shared-memory-size", "64"],
}


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest) -> Path:
    given = request.config.getoption("--other-clients")
    if not given:
        pytest.skip("no --other-clients")
    return Path(str(given))


@pytest.fixture(scope="module", params=["own", "grpcio"])
def server(folder: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    assert folder.is_dir()
    repository = tmp_path_factory.mktemp("models")
    write_python(repository, "same", SAME, (TensorSpec("x", "FP32", (4,)),), (TensorSpec("y", "FP32", (4,)),), 8)
    with serving(repository, "--grpc-front", request.param) as running:
        eventually(lambda: running.status()["grpc_front"]["serves"], "gRPC is served")
        yield running


def http_target(server: Server) -> str:
    host, port = server.address("http")
    return f"{host}:{port}"


def run(*command: str | Path, **env: str) -> str:
    if not Path(command[0]).exists():
        pytest.skip(f"{Path(command[0]).name} is not installed there")
    made = subprocess.run(
        [str(each) for each in command],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **env},
        check=False,
    )
    assert made.returncode == 0, made.stdout + made.stderr
    return made.stdout


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("protocol", ["REST", "gRPC"])
def test_kserve_asks_over_both_protocols(folder: Path, server: Server, protocol: str, binary: bool) -> None:
    code = KSERVE.replace("BINARY", str(binary))
    rpc = target(server) if protocol == "gRPC" else ""
    run(folder / "kserve" / "bin" / "python", "-c", code, f"http://{http_target(server)}", rpc)


def test_mlserver_infers_a_file_of_requests(folder: Path, server: Server, tmp_path: Path) -> None:
    inputs = [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]
    (tmp_path / "in.txt").write_text("\n".join([json.dumps({"id": str(each), "inputs": inputs}) for each in range(20)]))
    command = ["infer", "-u", http_target(server), "-m", "same", "-i", str(tmp_path / "in.txt")]
    run(folder / "mlserver" / "bin" / "mlserver", *command, "-o", str(tmp_path / "out.txt"), "--workers", "2")
    found = [json.loads(line) for line in (tmp_path / "out.txt").read_text().splitlines()]
    assert len(found) == 20
    assert all(each["outputs"][0]["data"] == [1, 2, 3, 4] for each in found), found[0]


@pytest.mark.parametrize("way", PERF_WAYS)
def test_perf_analyzer_measures(folder: Path, server: Server, tmp_path: Path, way: str) -> None:
    report = tmp_path / "report.csv"
    address = http_target(server) if way == "http" else target(server)
    command: list[str | Path] = [
        folder / "perf_analyzer",
        "-m",
        "same",
        *PERF_WAYS[way],
        "-u",
        address,
        "--concurrency-range",
        "4",
    ]
    if "stream" in way:
        command.append("--async")
    run(*command, "-p", "200", "-r", "3", "-s", "999", "-f", report, LD_LIBRARY_PATH=str(folder / "lib"))
    (row,) = csv.DictReader(report.read_text().splitlines())
    assert float(row["Inferences/Second"]) > 0
