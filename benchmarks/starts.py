"""Measures what a lone client notices of processes that start: the standby gateway, then a worker that imports torch.

    python benchmarks/starts.py [--base PATH] [--rounds 3] [--json]

Each round starts a server of this checkout, and one of `--base` (a checkout with an environment in .venv) after or
before it. One client calls an ONNX model over one connection all the time. Its latencies are told by what starts
meanwhile, and how long that took: from its process to its last work, or to the end of the load request.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from engines.build import write_identity_onnx, write_torchscript
from harness.server import Server, serving

WARM_S, ALONE_S, START_S = 0.5, 1.5, 60.0
AT_REST_S = 0.3
"""A process that has used no processor time for so long has started."""
LOOK_S = 0.02
PHASES = ("nothing starts", "the standby gateway starts", "nothing loads", "a worker loads torch")
BODY = b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [4], "data": [1, 2, 3, 4]}]}'
REQUEST = (
    b"POST /v2/models/one/infer HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
)


@dataclass
class Phase:
    latencies_ms: list[float] = field(default_factory=list[float])
    took_s: list[float] = field(default_factory=list[float])

    def figures(self) -> dict[str, float]:
        ordered = sorted(self.latencies_ms)
        return {
            "n": len(ordered),
            "p50_ms": round(statistics.median(ordered), 3),
            "p99_ms": round(ordered[int(len(ordered) * 0.99)], 3),
            "max_ms": round(ordered[-1], 2),
            "took_s": round(statistics.median(self.took_s), 2),
        }


class Client:
    """One connection; calls while it is told to."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._socket = socket.create_connection(address)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def call_until(self, is_over: Callable[[], bool], phase: Phase) -> None:
        began = next_look = time.monotonic()
        while time.monotonic() < next_look or not is_over():
            if time.monotonic() >= next_look:
                next_look = time.monotonic() + LOOK_S
            sent = time.perf_counter()
            self._socket.sendall(REQUEST)
            answer = self._socket.recv(1 << 16)
            phase.latencies_ms.append((time.perf_counter() - sent) * 1e3)
            assert answer.startswith(b"HTTP/1.1 200"), answer
            assert time.monotonic() < began + START_S, "nothing starts, or it never comes to rest"
        phase.took_s.append(time.monotonic() - began)

    def close(self) -> None:
        self._socket.close()


def children(pid: int) -> set[int]:
    return {int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def until_after(seconds: float) -> Callable[[], bool]:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() >= end


def until_at_rest(pid: int) -> Callable[[], bool]:
    """Whether a process has used no processor time for a while. The while itself is no part of its start, but of what
    is measured: it dilutes both sides alike."""
    last, since = -1, time.monotonic()

    def is_at_rest() -> bool:
        nonlocal last, since
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        used = int(fields[11]) + int(fields[12])
        if used != last:
            last, since = used, time.monotonic()
        return used > 0 and time.monotonic() - since > AT_REST_S

    return is_at_rest


@contextlib.contextmanager
def loading(server: Server, model: str) -> Iterator[Callable[[], bool]]:
    """Request a load; whether it has been answered."""

    def load() -> None:
        http = server.http()
        status, body = http.json("POST", f"/v2/repository/models/{model}/load", {})
        assert status == 200, body
        http.close()

    thread = threading.Thread(target=load, name="load")
    thread.start()
    try:
        yield lambda: not thread.is_alive()
    finally:
        thread.join()


def one_server(repository: Path, python: str, phases: dict[str, Phase]) -> None:
    flags = ("--spare-gateway", "true", "--model-control-mode", "explicit", "--load-model", "one")
    with serving(repository, *flags, python=python) as server:
        keeper = server.status()["keeper"]["pid"]
        before = children(keeper)
        client = Client(server.address())
        client.call_until(until_after(WARM_S), Phase())
        client.call_until(lambda: bool(children(keeper) - before), phases[PHASES[0]])
        (standby,) = children(keeper) - before
        client.call_until(until_at_rest(standby), phases[PHASES[1]])
        client.call_until(until_after(WARM_S), Phase())
        client.call_until(until_after(ALONE_S), phases[PHASES[2]])
        with loading(server, "two") as is_loaded:
            client.call_until(is_loaded, phases[PHASES[3]])
        client.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    pythons = {"this checkout": sys.executable}
    if chosen.base is not None:
        pythons["base"] = str(chosen.base / ".venv/bin/python")
    found = {name: {phase: Phase() for phase in PHASES} for name in pythons}
    with tempfile.TemporaryDirectory(prefix="mmsup_bench_") as folder:
        write_identity_onnx(Path(folder), "one")
        write_torchscript(Path(folder), "two")
        for number in range(chosen.rounds):
            names = list(pythons) if number % 2 else list(reversed(pythons))
            for name in names:
                one_server(Path(folder), pythons[name], found[name])
    figures = {name: {phase: each.figures() for phase, each in phases.items()} for name, phases in found.items()}
    if chosen.json:
        print(json.dumps({"load_average": os.getloadavg(), **figures}, indent=1))
        return
    for name, phases in figures.items():
        for place, (phase, each) in enumerate(phases.items()):
            alone = phases[PHASES[place - place % 2]]["p99_ms"]
            print(
                f"{name:14} {phase:28} n {each['n']:6.0f}  p50 {each['p50_ms']:7.3f}  p99 {each['p99_ms']:7.3f} ms"
                f" ({each['p99_ms'] / alone:4.2f}x)  max {each['max_ms']:7.2f} ms  took {each['took_s']:5.2f} s"
            )


if __name__ == "__main__":
    main()
