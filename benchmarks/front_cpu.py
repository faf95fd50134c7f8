"""CPU time of gateway and worker for each small inference: what a core can serve, whatever the machine is busy with.

python benchmarks/front_cpu.py [--requests N] [--connections N] [--floats N] [--json] [--front fast|plain] [--batch N]

Starts a server of one ONNX model that returns its input, sends N requests over keep-alive connections, each as soon as
the one before it is answered, checks every reply, and reads the processes' own clocks (/proc/PID/stat) before and after.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import struct
import sys
import tempfile
import time
from pathlib import Path

import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from engines.build import write_identity_onnx
from harness.server import Server, serving

TICK_US = 1e6 / os.sysconf("SC_CLK_TCK")


def cpu_us(pid: int) -> tuple[float, float]:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) * TICK_US, int(fields[12]) * TICK_US


def request(floats: int, *, as_json: bool) -> tuple[bytes, bytes]:
    """A whole request, and what its reply's body must end with."""
    values = [float(number) for number in range(floats)]
    tensor: dict[str, object] = {"name": "x", "datatype": "FP32", "shape": [1, floats]}
    blob = b"" if as_json else struct.pack(f"<{floats}f", *values)
    tensor |= {"data": values} if as_json else {"parameters": {"binary_data_size": len(blob)}}
    words = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": not as_json}}).encode()
    lines = ["POST /v2/models/identity/infer HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(words) + len(blob)}"]
    if not as_json:
        lines.append(f"Inference-Header-Content-Length: {len(words)}")
    ending = (json.dumps(values, separators=(",", ":")) + "}]}").encode() if as_json else blob
    return "\r\n".join([*lines, "", ""]).encode() + words + blob, ending


class Client(asyncio.Protocol):
    """One connection that asks again as soon as it is answered."""

    def __init__(self, sent: bytes, ending: bytes, left: list[int], done: asyncio.Event) -> None:
        self._sent, self._ending, self._left, self._done = sent, ending, left, done
        self._got = b""
        self._began = 0.0
        self._transport: asyncio.Transport
        self.taken: list[float] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment] # of TCP, as it was asked for
        self._ask()

    def _ask(self) -> None:
        if self._left[0] <= 0:
            self._transport.close()
            return
        self._left[0] -= 1
        self._began = time.perf_counter()
        self._transport.write(self._sent)

    def data_received(self, data: bytes) -> None:
        self._got += data
        head = self._got.find(b"\r\n\r\n")
        if head < 0:
            return
        at = self._got.index(b"Content-Length: ") + 16
        if len(self._got) < head + 4 + int(self._got[at : self._got.index(b"\r", at)]):
            return
        assert self._got.startswith(b"HTTP/1.1 200") and self._got.endswith(self._ending), self._got
        self._got = b""
        self.taken.append(time.perf_counter() - self._began)
        self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        self._left[1] -= 1
        if not self._left[1]:
            self._done.set()


async def drive(address: tuple[str, int], connections: int, count: int, sent: tuple[bytes, bytes]) -> list[float]:
    """Send `count` requests; how long each took, in seconds, in order of length."""
    done, left = asyncio.Event(), [count, connections]
    loop = asyncio.get_running_loop()
    made = [await loop.create_connection(lambda: Client(*sent, left, done), *address) for _ in range(connections)]
    await done.wait()
    return sorted(each for _, client in made for each in client.taken)


def measure(server: Server, arguments: argparse.Namespace) -> None:
    pids = {"gateway": server.status()["gateways"][0]["pid"], "worker": server.pid("identity")}
    sent = request(arguments.floats, as_json=arguments.json)
    uvloop.run(drive(server.address(), arguments.connections, arguments.requests // 10, sent))
    before = {name: cpu_us(pid) for name, pid in pids.items()}
    began = time.perf_counter()
    taken = uvloop.run(drive(server.address(), arguments.connections, arguments.requests, sent))
    wall_s = time.perf_counter() - began
    for name, pid in pids.items():
        user, system = ((now - then) / arguments.requests for now, then in zip(cpu_us(pid), before[name], strict=True))
        print(f"{name:8} {user + system:6.1f} µs CPU a request: {user:.1f} user, {system:.1f} system")
    p50, p99 = (taken[int(len(taken) * part)] * 1e3 for part in (0.5, 0.99))
    print(f"{len(taken) / wall_s:.0f} requests/s, p50 {p50:.3f} ms, p99 {p99:.3f} ms (this client shares the cores)")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--floats", type=int, default=16)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--front", default="fast")
    parser.add_argument("--batch", type=int, default=0)
    parser.add_argument("--hold", action="store_true", help="wait for Enter before the end, to look with a profiler")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mmsup_test_") as folder:
        dims = [-1] if arguments.batch else [-1, -1]
        write_identity_onnx(Path(folder), "identity", dims=dims, max_batch=arguments.batch)
        with serving(Path(folder), "--http-front", arguments.front) as server:
            measure(server, arguments)
            if arguments.hold:
                input(f"{server.status()['gateways'][0]['pid']}: Enter ")
            server.stop()


if __name__ == "__main__":
    main()
