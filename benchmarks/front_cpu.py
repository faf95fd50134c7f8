"""Measures the CPU time of gateway and worker per small inference.

python benchmarks/front_cpu.py [--run-s S] [--connections N] [--floats N] [--json] [--front fast|plain] [--batch N]

Starts a server of one ONNX model that returns its input and drives it with load.c from core 1. Gateway and worker share
core 0; with --apart the gateway has it alone. The processes' own clocks (/proc/PID/stat) are read before and after.
"""

from __future__ import annotations

import argparse
import json
import os
import struct
import sys
import tempfile
from pathlib import Path

import numpy as np
from changing_request import ChangingRequest
from generator import Load, drive

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from engines.build import write_identity_onnx
from harness.server import Server, serving

TICK_US = 1e6 / os.sysconf("SC_CLK_TCK")
Clock = dict[str, tuple[float, float]]


def request(floats: int, *, as_json: bool, model: str = "identity") -> bytes:
    """An inference request."""
    values = [float(number) for number in range(floats)]
    tensor: dict[str, object] = {"name": "x", "datatype": "FP32", "shape": [1, floats]}
    blob = b"" if as_json else struct.pack(f"<{floats}f", *values)
    tensor |= {"data": values} if as_json else {"parameters": {"binary_data_size": len(blob)}}
    words = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": not as_json}}).encode()
    lines = [f"POST /v2/models/{model}/infer HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(words) + len(blob)}"]
    if not as_json:
        lines.append(f"Inference-Header-Content-Length: {len(words)}")
    return "\r\n".join([*lines, "", ""]).encode() + words + blob


def clock(pids: dict[str, int]) -> Clock:
    """User and system time of each process so far, microseconds."""
    fields = {name: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for name, pid in pids.items()}
    return {name: (int(each[11]) * TICK_US, int(each[12]) * TICK_US) for name, each in fields.items()}


def pin(pid: int, usable: set[int]) -> None:
    """Keep all threads of a process on these cores."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), usable)


def measure(server: Server, folder: Path, arguments: argparse.Namespace) -> None:
    pids = {"gateway": server.status()["gateways"][0]["pid"], "worker": server.pid("identity")}
    pin(pids["gateway"], {0})
    pin(pids["worker"], {1 if arguments.apart else 0})
    sent = folder / "request"
    x = np.arange(arguments.floats, dtype=np.float32)
    asked = ChangingRequest.of(request(arguments.floats, as_json=arguments.json), x)
    asked.write(sent)
    clocks: list[Clock] = []
    load = Load(server.address()[1], arguments.connections, 1.0, arguments.run_s, [sent], 1)
    found = drive(load, folder / "samples", lambda _: clocks.append(clock(pids)))
    assert not found.failures, found.first_failure
    assert found.samples, "no reply was kept"
    for sample in found.samples:
        x, body = asked.sent(sample.serial)[1], sample.body
        if arguments.json:
            body = np.array(json.loads(body)["outputs"][0]["data"], np.float32).tobytes()
        assert body.endswith(x.tobytes())
    for name in pids:
        user, system = (
            (now - then) / found.requests for now, then in zip(clocks[1][name], clocks[0][name], strict=True)
        )
        print(f"{name:8}{user + system:6.1f} µs of CPU a request: {user:.1f} user, {system:.1f} system")
    print(f"{found.requests / found.elapsed_s:.0f} requests/s, p50 {found.p50_us:.0f} µs, p99 {found.p99_us:.0f} µs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run-s", type=float, default=5.0)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--floats", type=int, default=16)
    parser.add_argument("--batch", type=int, default=0)
    parser.add_argument("--front", default="fast")
    for flag in ("json", "apart"):
        parser.add_argument(f"--{flag}", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mmsup_test_") as folder:
        repository = Path(folder, "repository")
        repository.mkdir()
        dims = [-1] if arguments.batch else [-1, -1]
        write_identity_onnx(repository, "identity", dims=dims, max_batch=arguments.batch)
        with serving(repository, "--http-front", arguments.front) as server:
            measure(server, Path(folder), arguments)
            server.stop()


if __name__ == "__main__":
    main()
