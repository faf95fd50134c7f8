"""Measures the latency of one model while another one is flooded with requests, or loaded again and again.

    python benchmarks/flood.py [--floods 0,8,32,256] [--rounds 5] [--run-s 3] [--rate 200] [--markdown FILE]

Callers of one model come at fixed times (an open loop, load.c), while so many clients of another model send one request
after the other, or while that model is loaded again and again. In a flood the gateway has the first core, workers and
clients the last; there the callers and their worker come before all others (SCHED_FIFO, which needs root), so that what
is seen is the wait in the gateway and not the wait for a core. Beside loads all share both cores, as they come. All
take turns, round by round, so that other work on the machine affects them alike; the figures are medians of the rounds.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import machine
import numpy as np
from changing_request import ChangingRequest
from front_cpu import pin, request
from generator import URGENT, Load, LoadResult, drive
from meanwhile import in_background
from places import cores, program
from progress import log_progress
from table import figure, table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from engines.build import write_identity_onnx
from harness.server import Server, eventually, serving

CALLED, FLOODED = "called", "flooded"
LOADS, NO_LOADS = "loads, all on both cores", "nothing, all on both cores"
FLOATS = 16
SERVED = "nv_inference_request_success"
TOP = Path("/sys/fs/cgroup/cpu/cgroup.procs")
"""Of cgroup v1, where there is one."""


@dataclass(frozen=True)
class CallerView:
    """What callers measured, and the requests of the flood served per second meanwhile."""

    calls: LoadResult
    flood: float


@contextmanager
def flood(port: int, clients: int, sent: Path, core: int) -> Iterator[None]:
    """Run so many clients in a closed loop during the block."""
    if not clients:
        yield
        return
    command = ["taskset", "-c", str(core), str(program("load")), "127.0.0.1", str(port), str(clients), "0.5", "3600"]
    with subprocess.Popen([*command, str(sent.parent), str(sent)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "begin\n", "the flood did not begin"
        try:
            yield
        finally:
            child.kill()


@contextmanager
def loads(server: Server) -> Iterator[None]:
    """Load a model again and again during the block; ends with the last load."""

    def load(stop: threading.Event) -> None:
        while not stop.is_set():
            server.ctl("load", name=FLOODED)

    with in_background(load):
        yield
    eventually(lambda: len(server.pids(FLOODED)) == 1, "the workers of earlier loads are gone")


def measure_callers(
    server: Server, folder: Path, options: argparse.Namespace, beside: AbstractContextManager[None], *, apart: bool
) -> CallerView:
    """What callers measure while `beside` is entered."""
    served: list[float] = []
    with beside:
        load = Load(server.address()[1], 4, 0.5, options.run_s, [folder / CALLED], cores().client, options.rate, apart)
        found = drive(load, folder / "samples", lambda _: served.append(server.gauge(SERVED, model=FLOODED)))
    (folder / "samples").rmdir()
    if found.failures or not found.requests:
        raise SystemExit(f"{found.failures} calls failed: {found.first_failure or 'none was answered'}")
    return CallerView(found, (served[1] - served[0]) / found.elapsed_s)


def pin_processes(server: Server, *, apart: bool) -> None:
    """Give the gateway a core of its own and the called worker priority on the other; or let all share both."""
    usable = os.sched_getaffinity(0)
    pin(server.status()["gateways"][0]["pid"], {cores().server} if apart else usable)
    for model in (CALLED, FLOODED):
        pin(server.pid(model), {cores().client} if apart else usable)
    called = server.pid(CALLED)
    if apart and TOP.exists():
        TOP.write_text(str(called))  # the control group may have no real-time share
    policy, priority = (os.SCHED_FIFO, URGENT) if apart else (os.SCHED_OTHER, 0)
    os.sched_setscheduler(called, policy, os.sched_param(priority))


def measure(options: argparse.Namespace) -> dict[str, list[CallerView]]:
    """Every flood in every round, then with and without loads."""
    seen: dict[str, list[CallerView]] = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="mmsup_bench_") as name:
        folder = Path(name)
        repository = folder / "repository"
        repository.mkdir()
        for model in (CALLED, FLOODED):
            write_identity_onnx(repository, model, dims=[-1, -1])
            x = np.arange(FLOATS, dtype=np.float32)
            ChangingRequest.of(request(FLOATS, as_json=False, model=model), x).write(folder / model)
        with serving(repository, "--model-control-mode", "explicit", "--load-model", "*") as server:
            for number in range(options.rounds):
                log_progress(f"round {number + 1} of {options.rounds}")
                pin_processes(server, apart=True)
                for clients in options.floods:
                    storm = flood(server.address()[1], clients, folder / FLOODED, cores().client)
                    seen[f"{clients} clients"].append(measure_callers(server, folder, options, storm, apart=True))
                pin_processes(server, apart=False)
                seen[NO_LOADS].append(measure_callers(server, folder, options, nullcontext(), apart=False))
                seen[LOADS].append(measure_callers(server, folder, options, loads(server), apart=False))
            server.stop()
    return seen


def row(beside: str, found: list[CallerView], least: list[CallerView]) -> list[str]:
    middle = [statistics.median(getattr(each.calls, part) for each in found) / 1e3 for part in ("p50_us", "p99_us")]
    ratios = [one.calls.p99_us / other.calls.p99_us for one, other in zip(found, least, strict=True)]
    worst = max(each.calls.max_us for each in found) / 1e3
    served = statistics.median(each.flood for each in found)
    return [beside, *map(figure, (*middle, worst, statistics.median(ratios), served))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--floods", type=lambda text: [*map(int, text.split(","))], default=[0, 8, 32, 256])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--run-s", type=float, default=3.0)
    parser.add_argument("--rate", type=float, default=200.0, help="requests of the callers in a second (200)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write what is printed")
    options = parser.parse_args()
    facts = machine.describe_machine() | {"command": shlex.join(["python", "benchmarks/flood.py", *sys.argv[1:]])}
    seen = measure(options)
    first = f"{options.floods[0]} clients"
    heads = ["beside", "p50, ms", "p99, ms", "worst, ms", "p99 ÷ the first's", "served to the flood, /s"]
    floods = [row(name, found, seen[first]) for name, found in seen.items() if name not in (NO_LOADS, LOADS)]
    others = [row(name, seen[name], seen[NO_LOADS]) for name in (NO_LOADS, LOADS)]
    tables = table(heads, floods) + "\n\n" + table(heads, others)
    text = "\n".join(f"- {name}: {value}" for name, value in facts.items()) + "\n\n" + tables + "\n"
    print(text)
    if options.markdown:
        options.markdown.write_text(
            f"# What a flood, and loads, cost the others\n\nWritten by `benchmarks/flood.py`.\n\n{text}"
        )


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
