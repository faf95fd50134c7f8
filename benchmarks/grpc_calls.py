"""CPU time per gRPC call of the whole server, beside HTTP of the same server and a bare server of the grpcio library.

    python benchmarks/grpc_calls.py [--rounds 5] [--run-s 2] [--floats 16] [--json FILE]

All processes of a server share one core, the client has the other. `mmsup` runs a model of one worker that adds 1;
`grpcio` is a server of that library alone, which parses the request and makes the reply in its own process: what any
server that is built on it has to pay before a model is asked. Rounds alternate; ratios are formed within a round. Needs
`pip install 'mmsup[test]'`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
from places import cores
from table import figure, table
from tritonclient.grpc import service_pb2

LEVELS = (1, 8, 32)
METHOD = "/inference.GRPCInferenceService/ModelInfer"
MODEL = """
class Model:
    def infer(self, inputs):
        return {"y": inputs["x"] + 1}
"""
SETTINGS = """
inputs: [{name: x, datatype: FP32, shape: [-1]}]
outputs: [{name: y, datatype: FP32, shape: [-1]}]
"""
BARE = """
import sys, numpy as np, grpc
from concurrent import futures
from tritonclient.grpc import service_pb2 as pb
def infer(request, context):
    x = np.frombuffer(request.raw_input_contents[0], np.float32)
    reply = pb.ModelInferResponse(model_name=request.model_name, model_version="1")
    reply.outputs.add(name="y", datatype="FP32", shape=list(x.shape))
    reply.raw_output_contents.append((x + 1).tobytes())
    return reply
server = grpc.server(futures.ThreadPoolExecutor(8))
parse, serialise = pb.ModelInferRequest.FromString, pb.ModelInferResponse.SerializeToString
handlers = {"ModelInfer": grpc.unary_unary_rpc_method_handler(infer, parse, serialise)}
service = grpc.method_handlers_generic_handler("inference.GRPCInferenceService", handlers)
server.add_generic_rpc_handlers([service])
print(server.add_insecure_port("127.0.0.1:0"), flush=True)
server.start()
server.wait_for_termination()
"""


@contextmanager
def bare_server(core: int) -> Iterator[tuple[str, Callable[[], float]]]:
    command = ["taskset", "-c", str(core), sys.executable, "-c", BARE]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"127.0.0.1:{process.stdout.readline().strip()}", lambda: cpu_s(process.pid)
        finally:
            process.terminate()


@contextmanager
def mmsup_server(core: int) -> Iterator[tuple[dict[str, str], Callable[[], float]]]:
    with tempfile.TemporaryDirectory(prefix="mmsup_bench_") as name:
        folder = Path(name)
        (folder / "models" / "add" / "1").mkdir(parents=True)
        (folder / "models" / "add" / "1" / "model.py").write_text(MODEL)
        (folder / "models" / "add" / "mmsup.yaml").write_text(SETTINGS)
        cli = [sys.executable, "-m", "mmsup.supervisor.cli"]
        command = ["taskset", "-c", str(core), *cli, "serve", f"--model-repository={folder / 'models'}"]
        command += ["--http-port=0", "--grpc-port=0", "--metrics-port=-1", "--spare-gateway=false"]
        command += [f"--runtime-dir={folder / 'run'}", f"--state-dir={folder / 'state'}"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                yield ready(cli, folder), lambda: cpu_s(process.pid)
            finally:
                process.terminate()


def ready(cli: list[str], folder: Path) -> dict[str, str]:
    """The addresses of a server once it is ready."""
    end_s = time.monotonic() + 60
    while time.monotonic() < end_s:
        status = [*cli, "ctl", "status", "--json", f"--runtime-dir={folder / 'run'}"]
        shown = subprocess.run(status, capture_output=True, text=True, check=False)
        if shown.returncode == 0 and json.loads(shown.stdout)["ready"]:
            addresses: dict[str, str] = json.loads(shown.stdout)["addresses"]
            return addresses
        time.sleep(0.1)
    raise SystemExit("the server does not become ready")


def cpu_s(pid: int) -> float:
    """Of a process and all below it."""
    root = psutil.Process(pid)
    return sum(sum(each.cpu_times()[:2]) for each in [root, *root.children(recursive=True)])


def request(floats: int) -> tuple[bytes, bytes]:
    """A serialised request, and the bytes of the right answer."""
    x = np.arange(floats, dtype=np.float32)
    message = service_pb2.ModelInferRequest(model_name="add")
    message.inputs.add(name="x", datatype="FP32", shape=[floats])
    message.raw_input_contents.append(x.tobytes())
    return message.SerializeToString(), (x + 1).tobytes()


async def drive_grpc(address: str, level: int, run_s: float, floats: int) -> int:
    """How many right answers came within `run_s`, with `level` calls in flight on one connection."""
    body, right = request(floats)
    answered = 0
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(address, options) as channel:
        call = channel.unary_unary(METHOD)
        first = service_pb2.ModelInferResponse.FromString(await call(body))
        if first.raw_output_contents[0] != right:
            raise SystemExit("a wrong answer")
        end_s = time.monotonic() + run_s

        async def one() -> None:
            nonlocal answered
            while time.monotonic() < end_s:
                reply: bytes = await call(body)
                if right not in reply:
                    raise SystemExit("a wrong answer")
                answered += 1

        await asyncio.gather(*[one() for _ in range(level)])
    return answered


async def drive_http(address: str, level: int, run_s: float, floats: int) -> int:
    """The same over HTTP in binary, a connection for each call in flight."""
    host, port = address.split(":")
    body, right = request(floats)
    data = body[-4 * floats :]
    head = json.dumps(
        {
            "inputs": [
                {"name": "x", "datatype": "FP32", "shape": [floats], "parameters": {"binary_data_size": len(data)}}
            ],
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    start = f"POST /v2/models/add/infer HTTP/1.1\r\nHost: {address}\r\nContent-Length: {len(head) + len(data)}\r\n"
    whole = f"{start}Inference-Header-Content-Length: {len(head)}\r\n\r\n".encode() + head + data
    answered, end_s = 0, time.monotonic() + run_s

    async def one() -> None:
        nonlocal answered
        reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 26)
        while time.monotonic() < end_s:
            writer.write(whole)
            shown = await reader.readuntil(b"\r\n\r\n")
            size = int(next(x for x in shown.lower().split(b"\r\n") if x.startswith(b"content-length")).split(b":")[1])
            if right not in await reader.readexactly(size):
                raise SystemExit("a wrong answer")
            answered += 1
        writer.close()

    await asyncio.gather(*[one() for _ in range(level)])
    return answered


def cost_us(drive: Callable[[], Any], used_s: Callable[[], float]) -> float:
    before = used_s()
    answered = asyncio.run(drive())
    return (used_s() - before) / answered * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--run-s", type=float, default=2.0)
    parser.add_argument("--floats", type=int, default=16)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    usable = cores()
    os.sched_setaffinity(0, {usable.client})
    found: dict[tuple[str, int], list[float]] = {}
    size = arguments.floats
    with mmsup_server(usable.server) as (ours, ours_s), bare_server(usable.server) as (bare, bare_s):
        for each in range(arguments.rounds + 1):  # the first warms up
            for level in LEVELS:
                runs = {
                    "mmsup, gRPC": (lambda: drive_grpc(ours["grpc"], level, arguments.run_s, size), ours_s),  # noqa: B023
                    "mmsup, HTTP": (lambda: drive_http(ours["http"], level, arguments.run_s, size), ours_s),  # noqa: B023
                    "grpcio alone": (lambda: drive_grpc(bare, level, arguments.run_s, size), bare_s),  # noqa: B023
                }
                for name, (drive, used_s) in runs.items():
                    us = cost_us(drive, used_s)
                    if each:
                        found.setdefault((name, level), []).append(us)
    medians = {key: statistics.median(values) for key, values in found.items()}
    rows = [
        [name, *[f"{figure(medians[name, each])} ({figure(min(found[name, each]))})" for each in LEVELS]]
        for name in ("mmsup, gRPC", "mmsup, HTTP", "grpcio alone")
    ]
    print(f"CPU of all processes of the server, us per call of {4 * size} bytes: median (least)")
    print(table(["", *[f"{each} in flight" for each in LEVELS]], rows))
    for level in LEVELS:
        ratios = [a / b for a, b in zip(found["mmsup, gRPC", level], found["grpcio alone", level], strict=True)]
        print(f"{level} in flight: mmsup over grpcio alone {statistics.median(ratios):.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps({f"{name}, {level}": values for (name, level), values in found.items()}))


if __name__ == "__main__":
    main()
