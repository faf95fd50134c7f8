"""Measures one client with large tensors in and out: in the request over TCP and a UNIX socket, and in shared memory.

    python benchmarks/client_memory.py [--megabytes 12.6] [--calls 60]

Starts a server of its own with a model that returns its input, on all cores, and prints milliseconds a call of
mmsup.client and of tritonclient (median and 90th percentile, three rounds in turn), with the CPU of all processes of
the server.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import tritonclient.http as httpclient
from machine import describe_machine
from tritonclient.utils import shared_memory

from mmsup.client import Client, ClientError

MODEL = """
class Model:
    def infer(self, inputs):
        return {"y": inputs["x"]}
"""
TENSORS = "inputs: [{name: x, datatype: FP32, shape: [-1]}]\noutputs: [{name: y, datatype: FP32, shape: [-1]}]\n"
ROUNDS = 3
WARM = 5
START_S = 60.0
Once = Callable[[], Any]


@contextmanager
def running() -> Iterator[tuple[psutil.Process, str, str]]:
    """The keeper, and the addresses of its TCP and UNIX listeners."""
    with tempfile.TemporaryDirectory(prefix="mmsup_bench_") as folder:
        model = Path(folder, "models", "same", "1")
        model.mkdir(parents=True)
        (model / "model.py").write_text(MODEL)
        (model.parent / "mmsup.yaml").write_text(TENSORS)
        unix = f"{folder}/http.sock"
        flags = ["--http-port", "0", "--grpc-port", "-1", "--metrics-port", "-1", "--http-unix", unix]
        places = ["--runtime-dir", f"{folder}/run", "--state-dir", f"{folder}/state"]
        argv = [sys.executable, "-m", "mmsup.supervisor.cli", "serve", "--model-repository", f"{folder}/models"]
        with open(f"{folder}/log", "wb") as log:
            server = subprocess.Popen([*argv, *flags, *places], stdout=log, stderr=log)
        try:
            _wait_until_ready(f"unix:{unix}")
            keeper = psutil.Process(server.pid)
            ports = {each.laddr.port for each in keeper.net_connections("tcp") if each.status == psutil.CONN_LISTEN}
            yield keeper, f"127.0.0.1:{ports.pop()}", f"unix:{unix}"
        finally:
            server.terminate()
            server.wait(30)


def _wait_until_ready(address: str) -> None:
    end_s = time.monotonic() + START_S
    while True:
        try:
            with Client(address, timeout_s=5) as client:
                if client.is_ready("same"):
                    return
        except ClientError:
            pass
        if time.monotonic() > end_s:
            raise SystemExit("the server did not start")
        time.sleep(0.05)


def cpu_s(keeper: psutil.Process) -> float:
    times = [each.cpu_times() for each in (keeper, *keeper.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def ways(stack: ExitStack, tcp: str, unix: str, x: Any) -> dict[str, Once]:
    """What is compared: each a function that makes one call."""
    over_tcp, over_unix = stack.enter_context(Client(tcp)), stack.enter_context(Client(unix))
    memory = stack.enter_context(over_tcp.shared_memory(2 * x.nbytes + 64))
    shared, target = memory.array(x.shape, x.dtype), memory.array(x.shape, x.dtype)
    shared[:] = x
    triton = stack.enter_context(httpclient.InferenceServerClient(tcp))
    sent = httpclient.InferInput("x", [x.size], "FP32")
    sent.set_data_from_numpy(x)
    region = shared_memory.create_shared_memory_region("bench", f"mmsup_bench_{time.monotonic_ns()}", 2 * x.nbytes)
    stack.callback(shared_memory.destroy_shared_memory_region, region)
    shared_memory.set_shared_memory_region(region, [x])
    triton.register_system_shared_memory("bench", region._shm_key, 2 * x.nbytes)
    stack.callback(triton.unregister_system_shared_memory, "bench")
    named = httpclient.InferInput("x", [x.size], "FP32")
    named.set_shared_memory("bench", x.nbytes)
    wanted = httpclient.InferRequestedOutput("y")
    wanted.set_shared_memory("bench", x.nbytes, offset=x.nbytes)
    return {
        "mmsup.client, TCP": lambda: over_tcp.infer("same", {"x": x})["y"],
        "mmsup.client, UNIX socket": lambda: over_unix.infer("same", {"x": x})["y"],
        "mmsup.client, shared memory": lambda: over_tcp.infer("same", {"x": shared}, into={"y": target})["y"],
        "tritonclient, TCP": lambda: triton.infer("same", [sent]).as_numpy("y"),
        "tritonclient, shared memory": lambda: triton.infer("same", [named], outputs=[wanted]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=12.6)
    parser.add_argument("--calls", type=int, default=60)
    arguments = parser.parse_args()
    x = np.random.default_rng(0).standard_normal(int(arguments.megabytes * 1e6 / 4), dtype=np.float32)
    with running() as (keeper, tcp, unix), ExitStack() as stack:
        compared = ways(stack, tcp, unix, x)
        took: dict[str, list[float]] = {name: [] for name in compared}
        cpu: dict[str, float] = dict.fromkeys(compared, 0.0)
        for _ in range(ROUNDS):
            for name, once in compared.items():
                for _ in range(WARM):
                    once()
                before = cpu_s(keeper)
                for _ in range(arguments.calls):
                    start = time.perf_counter()
                    once()
                    took[name].append(time.perf_counter() - start)
                cpu[name] += cpu_s(keeper) - before
        assert np.array_equal(compared["mmsup.client, shared memory"](), x), "a wrong answer"
        print(f"{x.nbytes / 1e6:.1f} MB in and out, one at a time; {describe_machine()}\n")
        print("| way | p50 ms | p90 ms | CPU of the server, ms a call |\n|---|---:|---:|---:|")
        for name, times in took.items():
            p90 = statistics.quantiles(times, n=10)[-1]
            each_ms = 1e3 * cpu[name] / len(times)
            print(f"| {name} | {1e3 * statistics.median(times):.2f} | {1e3 * p90:.2f} | {each_ms:.2f} |")


if __name__ == "__main__":
    main()
