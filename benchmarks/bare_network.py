"""The ONNX network of the batching scene without a server, measured on the server's core as one more row.

    python benchmarks/bare_network.py FILE ROWS SECONDS

Every run has other values, as every request has. It runs as a child, so that it has the server's core for itself.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from measure import Bench
from network import OnnxNetwork
from places import HERE
from row import Row
from work import MAX_BATCH, MLP_INPUTS, Scene

BARE = "bare"
"""Key of its rows."""
NAME = "the network alone"
INPUTS = 64
WARM = 50
"""Runs before the measured ones."""


def measure(scene: Scene, bench: Bench) -> Iterator[Row]:
    """Full batches beside the loads of many connections, one row beside those of one."""
    for run in scene.runs:
        rows = MAX_BATCH if run.connections > 1 else 1
        command = ["taskset", "-c", str(bench.cores.server), sys.executable, str(HERE / "bare_network.py")]
        command += [str(bench.network.file), str(rows), str(bench.run_s)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout)
        note = f"no server: {rows} rows a run" if rows > 1 else "no server"
        yield Row(BARE, run.key, **found, cpu_us_by_process={"network": found["cpu_us"]}, note=note)


def main() -> None:
    file, rows, seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    network = OnnxNetwork(file)
    inputs = np.random.default_rng(5).standard_normal((INPUTS, rows, MLP_INPUTS), dtype=np.float32)
    for place in range(WARM):
        network(inputs[place % INPUTS])
    took_s: list[float] = []
    began, used_s = time.perf_counter(), time.process_time()
    while time.perf_counter() < began + seconds:
        x = inputs[len(took_s) % INPUTS]
        start = time.perf_counter()
        network(x)
        took_s.append(time.perf_counter() - start)
    used_s = time.process_time() - used_s
    requests = rows * len(took_s)
    p50_ms, p99_ms, p999_ms = (np.percentile(took_s, [50, 99, 99.9]) * 1e3).tolist()
    told = {"rate": requests / sum(took_s), "cpu_us": used_s * 1e6 / requests, "requests": requests}
    print(json.dumps(told | {"p50_ms": p50_ms, "p99_ms": p99_ms, "p999_ms": p999_ms, "max_ms": max(took_s) * 1e3}))


if __name__ == "__main__":
    main()
