"""perf_analyzer over HTTP, gRPC and shared memory: mmsup, Triton's Python backend with the same class, a bare server.

    python benchmarks/perf_analyzer.py --tools DIRECTORY [--markdown FILE]

DIRECTORY is one that tests/conformance/other_clients.py has filled: `perf_analyzer` (of the wheel tritonclient 2.48.0)
and its libraries in `lib`. Put there by hand: `tritonserver`, of the wheel nvidia-pytriton; without it its rows are
left out.
All processes of a server run on one core, perf_analyzer on another. CPU time is that of all of them.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from grpc_calls import cpu_s, ready
from places import cores
from table import figure, table

LEVELS = (1, 8, 32)
WAYS = {
    "HTTP": ["-i", "http"],
    "gRPC": ["-i", "grpc"],
    "gRPC, shared memory": ["-i", "grpc", "--shared-memory", "system"],
}
FLOATS = 16
CLASS = """\
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        inputs = [pb_utils.get_input_tensor_by_name(each, "INPUT0").as_numpy() for each in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", each)]) for each in inputs]
"""
OWN_CLASS = """\
class Model:
    def infer(self, inputs):
        return {"OUTPUT0": inputs["INPUT0"]}
"""
CONFIG = f"""\
backend: "python"
input [{{ name: "INPUT0" data_type: TYPE_FP32 dims: [ {FLOATS} ] }}]
output [{{ name: "OUTPUT0" data_type: TYPE_FP32 dims: [ {FLOATS} ] }}]
"""
BARE = """\
import sys
from concurrent import futures
import grpc
from tritonclient.grpc import service_pb2 as pb, service_pb2_grpc
class Service(service_pb2_grpc.GRPCInferenceServiceServicer):
    def ServerReady(self, request, context): return pb.ServerReadyResponse(ready=True)
    def ServerLive(self, request, context): return pb.ServerLiveResponse(live=True)
    def ModelReady(self, request, context): return pb.ModelReadyResponse(ready=True)
    def ServerMetadata(self, request, context):
        return pb.ServerMetadataResponse(name="bare", version="1", extensions=["system_shared_memory"])
    def ModelMetadata(self, request, context):
        made = pb.ModelMetadataResponse(name="echo", versions=["1"], platform="python")
        for rows, name in ((made.inputs, "INPUT0"), (made.outputs, "OUTPUT0")):
            rows.add(name=name, datatype="FP32", shape=[16])
        return made
    def ModelConfig(self, request, context):
        made = pb.ModelConfigResponse()
        made.config.name = "echo"
        made.config.input.add(name="INPUT0", data_type=11, dims=[16])
        made.config.output.add(name="OUTPUT0", data_type=11, dims=[16])
        return made
    def ModelStatistics(self, request, context):
        made = pb.ModelStatisticsResponse()
        made.model_stats.add(name="echo", version="1")
        return made
    def ModelInfer(self, request, context):
        made = pb.ModelInferResponse(model_name="echo", model_version="1", id=request.id)
        made.outputs.add(name="OUTPUT0", datatype="FP32", shape=[16])
        made.raw_output_contents.append(request.raw_input_contents[0])
        return made
server = grpc.server(futures.ThreadPoolExecutor(8))
service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Service(), server)
print(server.add_insecure_port("127.0.0.1:0"), flush=True)
server.start()
server.wait_for_termination()
"""


@dataclass(frozen=True)
class Target:
    """A running server: what perf_analyzer connects to, and the process whose tree is its."""

    addresses: dict[str, str]
    pid: int


@dataclass(frozen=True)
class Figure:
    requests_per_s: float
    cpu_us: float
    """Of all processes of the server, for each request, while it was measured."""


def write_models(folder: Path, code: str) -> Path:
    (folder / "models" / "echo" / "1").mkdir(parents=True)
    (folder / "models" / "echo" / "1" / "model.py").write_text(code)
    (folder / "models" / "echo" / "config.pbtxt").write_text(CONFIG)
    return folder / "models"


@contextlib.contextmanager
def temporary() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mmsup_bench_") as name:
        yield Path(name)


@contextlib.contextmanager
def started(core: int, command: list[str], env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        ["taskset", "-c", str(core), *command],  # noqa: S607 - a program of the machine
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, **(env or {})},
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


@contextlib.contextmanager
def mmsup(core: int, code: str, *flags: str) -> Iterator[Target]:
    with temporary() as folder:
        cli = [sys.executable, "-m", "mmsup.supervisor.cli"]
        command = [*cli, "serve", f"--model-repository={write_models(folder, code)}", "--http-port=0", "--grpc-port=0"]
        command += ["--metrics-port=-1", "--spare-gateway=false", *flags]
        command += [f"--runtime-dir={folder / 'run'}", f"--state-dir={folder / 'state'}"]
        with started(core, command) as process:
            yield Target(ready(cli, folder), process.pid)


@contextlib.contextmanager
def triton(core: int, tools: Path) -> Iterator[Target]:
    with temporary() as folder:
        root = tools / "tritonserver"
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        stub = root / "backends" / "python" / "triton_python_backend_stub"
        shutil.copy(root / "python_backend_stubs" / version / stub.name, stub)
        packages = next(each for each in sys.path if each.endswith("site-packages"))
        env = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": packages}
        env["LD_LIBRARY_PATH"] = f"{sys.base_prefix}/lib"
        http, grpc_port = free_ports()
        command = [str(root / "bin" / "tritonserver"), "--model-repository", str(write_models(folder, CLASS))]
        command += ["--backend-directory", str(root / "backends"), "--allow-metrics", "false", "--log-info", "false"]
        command += ["--http-address", "127.0.0.1", "--grpc-address", "127.0.0.1"]
        with started(core, [*command, "--http-port", str(http), "--grpc-port", str(grpc_port)], env) as process:
            await_http(f"http://127.0.0.1:{http}/v2/health/ready")
            yield Target({"http": f"127.0.0.1:{http}", "grpc": f"127.0.0.1:{grpc_port}"}, process.pid)


@contextlib.contextmanager
def bare(core: int) -> Iterator[Target]:
    with started(core, [sys.executable, "-c", BARE]) as process:
        assert process.stdout is not None, "its output is a pipe"
        yield Target({"grpc": f"127.0.0.1:{process.stdout.readline().strip()}"}, process.pid)


def free_ports() -> tuple[int, int]:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        return one.getsockname()[1], two.getsockname()[1]


def await_http(url: str) -> None:
    end_s = time.monotonic() + 60
    while time.monotonic() < end_s:
        with contextlib.suppress(OSError), urllib.request.urlopen(url) as response:  # noqa: S310 - our own address
            if response.status == 200:
                return
        time.sleep(0.1)
    raise SystemExit(f"{url} does not become ready")


def measure(tools: Path, core: int, target: Target, way: str, level: int, run_ms: int) -> Figure:
    """One run of perf_analyzer. CPU and requests are of its second window, when the server is warm."""
    protocol = "http" if way == "HTTP" else "grpc"
    with temporary() as folder:
        report = folder / "report.csv"
        command = ["taskset", "-c", str(core), str(tools / "perf_analyzer"), "-m", "echo", *WAYS[way]]
        command += ["-u", target.addresses[protocol], "--concurrency-range", str(level), "-p", str(run_ms)]
        command += ["-r", "3", "-s", "999", "-f", str(report), "--output-shared-memory-size", str(4 * FLOATS)]
        env = {**os.environ, "LD_LIBRARY_PATH": str(tools / "lib")}
        process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        time.sleep(1.5 * run_ms / 1000)
        before, began_s = cpu_s(target.pid), time.monotonic()
        time.sleep(run_ms / 1000)
        used_s, took_s = cpu_s(target.pid) - before, time.monotonic() - began_s
        output, _ = process.communicate()
        if process.returncode:
            raise SystemExit(f"perf_analyzer failed over {way} at {level}:\n{output}")
        (row,) = csv.DictReader(report.open())
        rate = float(row["Inferences/Second"])
        return Figure(rate, used_s / took_s / rate * 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tools", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--run-ms", type=int, default=1000)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    usable, rows = cores(), {}
    with contextlib.ExitStack() as stack:
        targets = {
            "mmsup, a class of its own kind": stack.enter_context(mmsup(usable.server, OWN_CLASS)),
            "mmsup, the same class as Triton": stack.enter_context(mmsup(usable.server, CLASS)),
            "mmsup, `--grpc-front grpcio`": stack.enter_context(mmsup(usable.server, OWN_CLASS, "--grpc-front=grpcio")),
            "a bare server of grpcio": stack.enter_context(bare(usable.server)),
        }
        if (options.tools / "tritonserver").exists():
            targets["Triton's Python backend"] = stack.enter_context(triton(usable.server, options.tools))
        for way in WAYS:
            for level in LEVELS:
                for name, target in targets.items():
                    is_left_out = (way != "gRPC" and "grpcio" in name) or (name.startswith("a bare") and way != "gRPC")
                    if not is_left_out:
                        rows[way, name, level] = measure(
                            options.tools, usable.client, target, way, level, options.run_ms
                        )
                        print(way, name, level, rows[way, name, level], flush=True)
    names = dict.fromkeys((way, name) for way, name, _ in rows)
    shown = [
        [way, name]
        + [f"{rows[way, name, each].requests_per_s:.0f}" for each in LEVELS]
        + [figure(rows[way, name, each].cpu_us) for each in LEVELS]
        for way, name in names
    ]
    heads = ["", "server", *[f"requests/s, {each}" for each in LEVELS], *[f"CPU µs, {each}" for each in LEVELS]]
    text = table(heads, shown)
    print(text)
    if options.markdown:
        options.markdown.write_text(text + "\n")


if __name__ == "__main__":
    main()
