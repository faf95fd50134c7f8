"""Loads and unloads one large model again and again: is all memory given back?

    python benchmarks/load_cycles.py [--cycles 500] [--megabytes 200] [--requests binary|json] [--json FILE]

The weights of the model are a numpy array of which every page is written. Each cycle loads it, sends it one request in
shared memory (with its 65,536 numbers as binary data, or in JSON), compares the answer, and unloads it. While nothing
is loaded, before the first cycle and after the last, the anonymous and shared memory of every process of the server,
the memory charged to the control groups of workers, and the number of those groups, descriptors and processes are
taken. Exits with 1 if anything has grown.

The first sample is taken after a warm-up: a model of 1 MB is loaded and unloaded until the controller holds as many
events as it ever does (2,000, five of each cycle), which are also more workers than a gateway remembers the ends of
(256); then the large one some times. Before each sample memory has settled: it has not moved for longer than the time
after which an idle gateway returns its heap.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import struct
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from engines.build import write_python
from harness.server import Http, Server, eventually, serving
from mmsup.ipc.specs import TensorSpec
from mmsup.supervisor.linux import cgroup_backend
from mmsup.supervisor.observability.event_log import EVENTS_KEPT

EVENTS_OF_A_CYCLE = 5
"""worker_spawn, worker_ready, model_loaded, model_unloaded, worker_stopped"""
WARM = 10
"""Cycles of the large model before the first sample."""
GROWTH_BYTES = 4 << 20
"""How much all processes together may have grown at the end: as much as a gateway's heap grows before it is returned.
A leak of 8 KiB a cycle is 4 MB in 500 cycles."""
SETTLED_S = 3.0
SETTLED_BYTES = 64 << 10
"""Memory has settled when it has moved by less for so long: a gateway that is idle returns its heap after 2 s."""
OPEN_FOR_A_MOMENT = 4
"""Descriptors that come and go: files being written, the connection of a command."""
ELEMENTS = 65_536
"""Of the request: 256 KiB, more than goes inline."""
VALUES = struct.pack("<f", 1.5) * ELEMENTS
TENSOR = {"name": "x", "datatype": "FP32", "shape": [ELEMENTS], "parameters": {"binary_data_size": len(VALUES)}}
HEAD = json.dumps({"inputs": [TENSOR], "parameters": {"binary_data_output": True}}).encode()
NUMBERS = [1.5] * ELEMENTS
NAME = "large"
SMALL = "small"
CODE = """
import numpy as np


class Model:
    def load(self, context):
        self.weights = np.ones({megabytes} << 18, np.float32)

    def infer(self, inputs):
        return {{"y": inputs["x"] * self.weights[: inputs["x"].shape[-1]]}}
"""


@dataclass
class Held:
    """What the server holds at one moment, with nothing loaded."""

    after_cycles: int
    memory_bytes: dict[str, int] = field(default_factory=dict)
    """By role, all gateways together."""
    group_bytes: int = 0
    """Charged to the control groups of its workers; 0 without cgroup v1."""
    groups: int = 0
    descriptors: int = 0
    processes: int = 0

    @property
    def total_bytes(self) -> int:
        return sum(self.memory_bytes.values())


def held(server: Server, cycles: int) -> Held:
    """A sample."""
    found = Held(cycles)
    for process in _processes(server):
        words = process.cmdline()
        role = next((word.rpartition(".")[2] for word in words if word.startswith("mmsup.")), "keeper")
        found.memory_bytes[role] = found.memory_bytes.get(role, 0) + _memory_bytes(process.pid)
        found.descriptors += process.num_fds()
        found.processes += 1
    top = cgroup_backend.ROOT / "memory" / cgroup_backend.top_name(str(server.state_dir))
    if top.exists():
        found.groups = sum(each.is_dir() for each in top.iterdir())
        stat = dict(line.split() for line in (top / "memory.stat").read_text().splitlines())
        found.group_bytes = int(stat["total_rss"]) + int(stat["total_shmem"])
    return found


def _memory_bytes(pid: int) -> int:
    """Anonymous and shared memory of a process, what it shares in proportion. Pages of files are left out: they are the
    kernel's, and the share of a process in them moves with what else runs on the machine."""
    rows = (line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines())
    return sum(int(row[1]) << 10 for row in rows if row[0] in ("Pss_Anon:", "Pss_Shmem:"))


def settled(server: Server, cycles: int) -> Held:
    """A sample once the worker, its group and its memory are gone, and memory has settled."""
    found, since_s = _without_workers(server, cycles), time.monotonic()
    while time.monotonic() < since_s + SETTLED_S:
        time.sleep(0.25)
        latest = _without_workers(server, cycles)
        if abs(latest.total_bytes - found.total_bytes) > SETTLED_BYTES:
            found, since_s = latest, time.monotonic()
    return found


def _without_workers(server: Server, cycles: int) -> Held:
    def attempt() -> Held | None:
        with contextlib.suppress(psutil.Error, OSError):  # a process or a group is just going
            found = held(server, cycles)
            return None if found.groups or "worker" in found.memory_bytes else found
        return None

    return eventually(attempt, "the worker and its control group are gone")


def _processes(server: Server) -> list[psutil.Process]:
    keeper = psutil.Process(server.process.pid)
    return [keeper, *keeper.children(recursive=True)]


def ask_binary(http: Http, name: str) -> None:
    status, heads, reply = http.send(
        "POST", f"/v2/models/{name}/infer", HEAD + VALUES, {"Inference-Header-Content-Length": str(len(HEAD))}
    )
    assert status == 200, reply
    assert reply[int(heads["Inference-Header-Content-Length"]) :] == VALUES, "a wrong answer"


def ask_json(http: Http, name: str) -> None:
    status, reply = http.infer(name, x=("FP32", [ELEMENTS], NUMBERS))
    assert status == 200, reply
    assert reply["outputs"][0]["data"] == NUMBERS, "a wrong answer"


ASK = {"binary": ask_binary, "json": ask_json}


def cycle(server: Server, http: Http, requests: str, name: str = NAME) -> float:
    """Load, one request, unload; the seconds of the load."""
    began = time.monotonic()
    server.ctl("load", name=name)
    took_s = time.monotonic() - began
    ASK[requests](http, name)
    server.ctl("unload", name=name)
    return took_s


def warm_up(server: Server, http: Http, requests: str) -> None:
    """What is kept of the past has its full size, and what is imported and cached once, is."""
    for _ in range(EVENTS_KEPT // EVENTS_OF_A_CYCLE):
        cycle(server, http, requests, SMALL)
    for _ in range(WARM):
        cycle(server, http, requests)


def run(cycles: int, megabytes: int, requests: str, samples: int = 10) -> tuple[list[Held], list[float]]:
    """Samples, the first after the warm-up, and the seconds of each load."""
    with TemporaryDirectory(prefix="mmsup_bench_") as home:
        tensors = (TensorSpec("x", "FP32", (-1,)),), (TensorSpec("y", "FP32", (-1,)),)
        write_python(Path(home), NAME, CODE.format(megabytes=megabytes), *tensors)
        write_python(Path(home), SMALL, CODE.format(megabytes=1), *tensors)
        with serving(Path(home), "--model-control-mode", "explicit") as server:
            http = server.http()
            warm_up(server, http, requests)
            found, loads_s = [settled(server, 0)], []
            print_heads(found[0])
            print_sample(found[0], found[0])
            for number in range(1, cycles + 1):
                loads_s.append(cycle(server, http, requests))
                if number % max(cycles // samples, 1) == 0:
                    found.append(settled(server, number))
                    print_sample(found[-1], found[0])
            http.close()
            return found, loads_s


def print_heads(first: Held) -> None:
    roles = (*first.memory_bytes, "all MB", "groups MB", "files", "processes")
    print("cycles", *(f"{each:>12}" for each in roles), flush=True)


def print_sample(each: Held, first: Held) -> None:
    figures = [f"{each.memory_bytes.get(role, 0) / 1e6:12.1f}" for role in first.memory_bytes]
    more = (f"{each.total_bytes / 1e6:12.1f}", f"{each.group_bytes / 1e6:12.1f}")
    print(f"{each.after_cycles:6}", *figures, *more, f"{each.descriptors:12}", f"{each.processes:12}", flush=True)


def faults(samples: list[Held]) -> list[str]:
    """What has grown from the first sample to the last."""
    first, last = samples[0], samples[-1]
    grown = last.total_bytes - first.total_bytes
    found = [f"the processes grew by {grown / 1e6:.1f} MB"] if grown > GROWTH_BYTES else []
    for name, slack in (("groups", 0), ("descriptors", OPEN_FOR_A_MOMENT), ("processes", 0)):
        if getattr(last, name) > getattr(first, name) + slack:
            found.append(f"{name}: {getattr(first, name)} before, {getattr(last, name)} after")
    if last.group_bytes > first.group_bytes + GROWTH_BYTES:
        found.append(f"control groups: {first.group_bytes} bytes before, {last.group_bytes} after")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cycles", type=int, default=500)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--requests", choices=ASK, default="binary")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    samples, loads_s = run(given.cycles, given.megabytes, given.requests)
    loads_s.sort()
    print(f"a load of {given.megabytes} MB: median {loads_s[len(loads_s) // 2]:.2f} s, longest {loads_s[-1]:.2f} s")
    wrong = faults(samples)
    print("\n".join(wrong) or "nothing has grown")
    if given.json:
        given.json.write_text(json.dumps([asdict(each) for each in samples], indent=1))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
