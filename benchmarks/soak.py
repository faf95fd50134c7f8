"""Soak test: very many requests of every kind to several models, with clients that disconnect at every stage.

    python benchmarks/soak.py [--requests 1000000] [--connections 48] [--json FILE]

Kinds are those of soak_requests.py: binary and JSON, with ids, with heads and shapes that no other has, of several
rows, and errors. Every reply is compared with its own request. Memory (the proportional set size), descriptors and
threads of every process are sampled all along; at the end it prints what they held at 10 %, 50 % and 100 % of the
requests, the slope since the warm-up, latencies, and exits with 1 if anything was wrong or grew.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import tree
import uvloop
from soak_requests import SMALL, RequestMix

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from engines.build import write_fault_model, write_identity_onnx, write_python
from mmsup.ipc.specs import TensorSpec
from mmsup.supervisor.cli.ctl import control_client

WARM = 0.2
"""Share of the run in which pools and caches reach their size."""
MARKS = (0.1, 0.5, 1.0)
"""Shares of the run at which memory is printed."""
GROWTH_BYTES = 4 << 20
"""How much the memory of a process may grow after the warm-up, by its slope."""
LEAVES = 0.009
"""Share of the requests whose client leaves before it has its reply."""
REVERSE = "class Model:\n    def infer(self, inputs):\n        return {'y': inputs['x'][::-1]}\n"
PLAIN = "class Model:\n    def infer(self, inputs):\n        return {'y': inputs['x']}\n"


def repository(folder: Path) -> Path:
    """The models: an ONNX one, one that batches, two in plain Python, one that fails now and then."""
    write_identity_onnx(folder, "onnx")
    write_identity_onnx(folder, "batching", dims=[-1], max_batch=16)
    tensors = TensorSpec("x", "FP32", (-1,)), TensorSpec("y", "FP32", (-1,))
    write_python(folder, "reverse", REVERSE, tensors[:1], tensors[1:])
    fixed = TensorSpec("x", "FP32", (SMALL,)), TensorSpec("y", "FP32", (SMALL,))
    write_python(folder, "plain", PLAIN, fixed[:1], fixed[1:])
    write_fault_model(folder, "raises")
    return folder


@dataclass
class SoakResults:
    """Outcomes of all requests."""

    wanted: int
    sent: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)

    def is_over(self) -> bool:
        """Whether enough was sent, or something failed."""
        return self.sent >= self.wanted or len(self.faults) > 10


class SoakClient:
    """A client that uses one connection after another, and disconnects at random stages."""

    def __init__(self, port: int, number: int, tally: SoakResults) -> None:
        self._port = port
        self._rng = random.Random(number)
        self._tally = tally
        self._mix = RequestMix(number)

    async def run(self) -> None:
        while not self._tally.is_over():
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=4 << 20)
            try:
                while not self._tally.is_over() and await self._send_one(reader, writer):
                    pass
            except (OSError, asyncio.IncompleteReadError) as error:
                self._tally.faults.append(repr(error))
            finally:
                writer.transport.abort()

    async def _send_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request; returns whether the connection stays open."""
        tally = self._tally
        tally.sent += 1
        if self._rng.random() < LEAVES:
            tally.outcomes[await self._leave(reader, writer)] += 1
            return False
        request = self._mix.next_one()
        began = time.monotonic()
        writer.write(request.message)
        head, body = await self._reply(reader)
        tally.latencies_s.append(time.monotonic() - began)
        if fault := request.fault(head, body):
            tally.faults.append(fault)
        tally.outcomes[request.kind] += 1
        return b"\r\nconnection: close" not in head.lower()

    async def _leave(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        """Send a request or a part of one, and go; returns when."""
        stage = self._rng.randrange(3)
        message = self._mix.largest().message if stage == 2 else self._mix.next_one().message
        writer.write(message[: self._rng.randrange(1, len(message))] if stage == 0 else message)
        await writer.drain()
        if stage == 2:
            await reader.readexactly(1000)
        return ("left during the upload", "left while waiting", "left during the reply")[stage]

    @staticmethod
    async def _reply(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
        head = await reader.readuntil(b"\r\n\r\n")
        at = head.lower().index(b"\r\ncontent-length: ") + 18
        return head, await reader.readexactly(int(head[at : head.index(b"\r\n", at)]))


def sample(keeper: int) -> dict[str, tuple[int, int, int]]:
    """Proportional set size, descriptors and threads of each server process."""
    found = {}
    for process in [psutil.Process(keeper), *psutil.Process(keeper).children(recursive=True)]:
        with contextlib.suppress(psutil.ZombieProcess, psutil.NoSuchProcess):  # `deaths` tells of it
            words = process.cmdline()
            name = next((word.rpartition(".")[2] for word in words if word.startswith("mmsup.")), words[0])
            label = next((word for word in words if "#" in word), "")
            held = process.memory_full_info().pss, process.num_fds(), process.num_threads()
            found[f"{name} {label}".strip()] = held
    return found


def deaths(log: Path) -> list[str]:
    """Lines of the server's log about processes that ended."""
    events = ("worker_exit", "gateway_exit", "spare_exit", "brain_exit")
    return [line for line in log.read_text().splitlines() if any(f'"event": "{each}"' in line for each in events)]


async def drive(port: int, keeper: int, tally: SoakResults, connections: int) -> list[tuple[int, dict[str, Any]]]:
    """All clients at once; samples as (requests sent, what each process held)."""
    tasks = [asyncio.create_task(SoakClient(port, number, tally).run()) for number in range(connections)]
    samples: list[tuple[int, dict[str, Any]]] = []
    while not all(task.done() for task in tasks):
        await asyncio.wait(tasks, timeout=1.0)
        samples.append((tally.sent, sample(keeper)))
        if sys.stderr.isatty():
            print(f"\r{tally.sent} of {tally.wanted}", end="", file=sys.stderr, flush=True)
    for task in tasks:
        task.result()
    return samples


def growth(samples: list[tuple[int, dict[str, Any]]], wanted: int) -> dict[str, dict[str, Any]]:
    """Resources of each process after warm-up and at the end, and the least-squares slope of its memory."""
    warm = [each for each in samples if each[0] >= wanted * WARM] or samples[-1:]
    table = {}
    for name, last in samples[-1][1].items():
        points = [(sent, held[name][0]) for sent, held in warm if name in held]
        first = next(held[name] for _, held in warm if name in held)
        marks = [_at(samples, wanted * share, name) for share in MARKS]
        x, y = np.array(points, dtype=np.float64).T
        slope = float(np.polyfit(x, y, 1)[0]) * 1e6 if len(points) > 2 else 0.0
        table[name] = {
            "bytes_at_marks": marks,
            "bytes_per_million_requests": round(slope),
            "growth_bytes": round(slope * (points[-1][0] - points[0][0]) / 1e6),
            "descriptors": [first[1], last[1]],
            "threads": [first[2], last[2]],
        }
    return table


def _at(samples: list[tuple[int, dict[str, Any]]], sent: float, name: str) -> int:
    """The memory of a process in the first sample after so many requests, or in the last."""
    return int(
        next((held[name][0] for count, held in samples if count >= sent and name in held), samples[-1][1][name][0])
    )


def report(tally: SoakResults, table: dict[str, dict[str, Any]], seconds: float) -> dict[str, Any]:
    """Print a table; returns all results as one object."""
    ms = np.percentile(np.array(tally.latencies_s) * 1000, [50, 99, 99.9]).round(2).tolist()
    made = {
        "requests": tally.sent,
        "seconds": round(seconds, 1),
        "outcomes": dict(tally.outcomes),
        "wrong": len(tally.faults),
        "p50_p99_p999_ms": ms,
        "processes": table,
    }
    print(f"{tally.sent} requests in {seconds:.0f} s, {len(tally.faults)} wrong")
    print(f"p50 {ms[0]}, p99 {ms[1]}, p99.9 {ms[2]} ms, by a client that shares the cores")
    for outcome, count in tally.outcomes.most_common():
        print(f"  {count:9d}  {outcome}")
    marks = "".join(f"{f'MiB, {share:.0%}':>11s}" for share in MARKS)
    print(f"{'process':28s}{marks} {'MiB/10^6':>9s}  descriptors  threads")
    for name, row in table.items():
        held = "".join(f"{each / 2**20:11.1f}" for each in row["bytes_at_marks"])
        slope = row["bytes_per_million_requests"] / 2**20
        fds, threads = "{} -> {}".format(*row["descriptors"]), "{} -> {}".format(*row["threads"])
        print(f"{name:28s}{held} {slope:9.2f}  {fds:>11s}  {threads:>7s}")
    for fault in tally.faults[:5]:
        print("wrong:", fault)
    return made


def is_flat(table: dict[str, dict[str, Any]]) -> bool:
    """Whether nothing grew since the warm-up."""
    return all(row["growth_bytes"] < GROWTH_BYTES and row["threads"][1] <= row["threads"][0] for row in table.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--connections", type=int, default=48)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    tree.end_as_exception()
    root = Path(tempfile.mkdtemp(prefix="mmsup_bench_"))
    notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notify.bind(str(root / "notify"))
    command = [sys.executable, "-m", "mmsup.supervisor.cli", "serve"]
    command += ["--http-port", "0", "--grpc-port", "-1", "--metrics-port", "0"]
    command += ["--model-repository", str(repository(root / "models")), "--runtime-dir", str(root / "run")]
    command += ["--state-dir", str(root / "state")]
    with (root / "log").open("wb") as log:
        env = {**os.environ, "MMSUP_DUMPABLE": "true", "NOTIFY_SOCKET": str(root / "notify")}
        server = subprocess.Popen(command, stdout=log, stderr=log, env=env)
    try:
        notify.settimeout(120)
        while b"READY=1" not in notify.recv(4096):
            pass
        port = int(control_client.call_server(str(root / "run"), "status")["addresses"]["http"].rpartition(":")[2])
        tally = SoakResults(chosen.requests)
        began = time.monotonic()
        samples = uvloop.run(drive(port, server.pid, tally, chosen.connections))
        tally.faults += deaths(root / "log")
        table = growth(samples, chosen.requests)
        made = report(tally, table, time.monotonic() - began)
        if chosen.json:
            chosen.json.write_text(json.dumps(made, indent=1) + "\n")
        return 0 if not tally.faults and is_flat(table) else 1
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)
        notify.close()
        shutil.rmtree(root)


if __name__ == "__main__":
    sys.exit(main())
