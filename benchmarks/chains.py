"""Two models chained three ways: by an ensemble, by a call in a model's code, by the client. Latency and CPU beside
each other.

    python benchmarks/chains.py [--run-s 3] [--rounds 3] [--markdown FILE]

Both models are Python classes that add one to their input, so that what is measured is the way between them. The third
row of each size is one of them alone. A client asks over HTTP with binary tensors, one request after the other. CPU is
that of all processes of the server, from /proc, per chain; the ways alternate in each round, and figures are medians of
the rounds.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine
import numpy as np
import psutil
import tritonclient.http as triton
from table import figure, table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from engines.build import write_python
from engines.ensemble_files import write_ensemble
from harness.server import Server, serving
from mmsup.ipc.specs import TensorSpec

SIZES = (("64 B", 16), ("64 KiB", 16_384), ("4 MiB", 1_048_576))
ADD = "class Model:\n    def infer(self, inputs):\n        return {'y': inputs['x'] + 1}\n"
CALL = """
class Model:
    def load(self, context):
        self.context = context

    def infer(self, inputs):
        return {"y": self.context.infer("second", {"x": inputs["x"] + 1})["y"]}
"""
WAYS = ("ensemble", "context.infer", "client", "one model alone")
TITLE = "# Two models chained three ways"
NOTE = (
    "A chain asks two models, the last rows of each size one. A client waits for each request before the next one. "
    "The client that chains asks over HTTP twice, and its own CPU time is not counted."
)
Ask = Callable[[], None]


@dataclass(frozen=True)
class Figures:
    p50_us: float
    p99_us: float
    cpu_us: float


def lay(repository: Path) -> None:
    x, y = (TensorSpec(name, "FP32", (-1,)) for name in "xy")
    for name, code in (("first", ADD), ("second", ADD), ("calling", CALL)):
        settings = {"parameters": {"read_only_inputs": True}}
        write_python(repository, name, code, (x,), (y,), settings=settings)
    write_ensemble(repository, "ensemble", ("first", {"x": "x"}, {"y": "m"}), ("second", {"x": "m"}, {"y": "y"}))


def ways(client: Any, elements: int) -> dict[str, Ask]:  # tritonclient has no types
    """What asks once, by way."""
    x = np.ones(elements, np.float32)

    def infer(model: str, given: Any, expected: float | None = None) -> Any:  # arrays
        tensor = triton.InferInput("x", list(given.shape), "FP32")
        tensor.set_data_from_numpy(given)
        made = client.infer(model, [tensor]).as_numpy("y")
        assert expected is None or made[-1] == expected, f"{model}: {made[-1]}"
        return made

    return {
        "ensemble": lambda: infer("ensemble", x, 3.0),
        "context.infer": lambda: infer("calling", x, 3.0),
        "client": lambda: infer("second", infer("first", x), 3.0),
        "one model alone": lambda: infer("first", x, 2.0),
    }


def cpu_s(server: Server) -> float:
    """Of all processes of the server."""
    keeper = psutil.Process(server.process.pid)
    times = [each.cpu_times() for each in (keeper, *keeper.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def measure(server: Server, ask: Ask, run_s: float) -> Figures:
    for _ in range(20):
        ask()
    took_s: list[float] = []
    began_s, before_s = time.perf_counter(), cpu_s(server)
    while time.perf_counter() - began_s < run_s:
        at_s = time.perf_counter()
        ask()
        took_s.append(time.perf_counter() - at_s)
    spent_s = cpu_s(server) - before_s
    ordered = sorted(took_s)
    p99_s = ordered[min(int(len(ordered) * 0.99), len(ordered) - 1)]
    return Figures(statistics.median(ordered) * 1e6, p99_s * 1e6, spent_s / len(ordered) * 1e6)


def rows(server: Server, run_s: float, rounds: int) -> list[list[str]]:
    host, port = server.address()
    made: list[list[str]] = []
    with triton.InferenceServerClient(f"{host}:{port}") as client:
        for size, elements in SIZES:
            asks = ways(client, elements)
            found: dict[str, list[Figures]] = {way: [] for way in WAYS}
            for _ in range(rounds):
                for way in WAYS:
                    found[way].append(measure(server, asks[way], run_s))
            for way in WAYS:
                names = ("p50_us", "p99_us", "cpu_us")
                medians = [statistics.median(getattr(each, name) for each in found[way]) for name in names]
                made.append([f"{size}, {way}", *map(figure, medians)])
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run-s", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mmsup_chains_") as folder:
        lay(Path(folder))
        with serving(Path(folder)) as server:
            lines = rows(server, arguments.run_s, arguments.rounds)
    made = table(["tensor, way", "p50, µs", "p99, µs", "CPU of the server, µs"], lines)
    facts = machine.describe_machine() | {"command": shlex.join(["python", "benchmarks/chains.py", *sys.argv[1:]])}
    text = "\n".join(f"- {name}: {value}" for name, value in facts.items()) + f"\n\n{made}\n"
    print(text)
    if arguments.markdown is not None:
        arguments.markdown.write_text(f"{TITLE}\n\nWritten by `benchmarks/chains.py`. {NOTE}\n\n{text}")


if __name__ == "__main__":
    main()
