"""What a flood on one model costs the callers of another, when the gateway is the bottleneck.

    python benchmarks/flood.py [--floods 0,8,32,256] [--rounds 5] [--run-s 3] [--rate 200] [--markdown FILE]

Callers of one model come at fixed times (an open loop, load.c), while so many clients of another model send one request
after the other. Gateway on the first core; workers and clients on the last. The floods take turns, round by round, so
that what else the machine does meets all of them alike; the figures are medians over the rounds.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import machine
from front_cpu import pin, request
from generator import Load, Outcome, drive
from places import cores, program
from progress import say
from table import figure, table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from engines.build import write_identity_onnx
from harness.server import Server, serving

CALLED, FLOODED = "called", "flooded"
FLOATS = 16


@contextmanager
def flood(port: int, clients: int, sent: Path, core: int) -> Iterator[None]:
    """So many clients that never pause, until the block is left."""
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


def look(server: Server, folder: Path, clients: int, asked: argparse.Namespace) -> Outcome:
    """What the callers see beside one flood."""
    port, core = server.address()[1], cores().client
    with flood(port, clients, folder / FLOODED, core):
        load = Load(port, 4, 0.5, asked.run_s, [folder / CALLED], core, asked.rate)
        found = drive(load, folder / "samples", lambda _: None)
    (folder / "samples").rmdir()
    if found.failures or not found.requests:
        raise SystemExit(f"beside {clients} clients: {found.failures} failures: {found.first_failure}")
    return found


def measure(asked: argparse.Namespace) -> dict[int, list[Outcome]]:
    """Every flood in every round."""
    seen: dict[int, list[Outcome]] = {clients: [] for clients in asked.floods}
    with tempfile.TemporaryDirectory(prefix="mmsup_bench_") as name:
        folder = Path(name)
        repository = folder / "repository"
        repository.mkdir()
        for model in (CALLED, FLOODED):
            write_identity_onnx(repository, model, dims=[-1, -1])
            (folder / model).write_bytes(request(FLOATS, as_json=False, model=model))
        with serving(repository) as server:
            pin(server.status()["gateways"][0]["pid"], cores().server)
            for model in (CALLED, FLOODED):
                pin(server.pid(model), cores().client)
            for number in range(asked.rounds):
                say(f"round {number + 1} of {asked.rounds}")
                for clients in asked.floods:
                    seen[clients].append(look(server, folder, clients, asked))
            server.stop()
    return seen


def row(clients: int, found: list[Outcome], least: list[Outcome]) -> list[str]:
    """A line of the table."""
    middle = [statistics.median(getattr(each, part) for each in found) / 1e3 for part in ("p50_us", "p99_us")]
    ratios = [one.p99_us / other.p99_us for one, other in zip(found, least, strict=True)]
    worst = max(each.max_us for each in found) / 1e3
    return [str(clients), *map(figure, (*middle, worst, statistics.median(ratios)))]


def main() -> None:
    """As the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--floods", type=lambda text: [*map(int, text.split(","))], default=[0, 8, 32, 256])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--run-s", type=float, default=3.0)
    parser.add_argument("--rate", type=float, default=200.0, help="requests of the callers in a second (200)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write what is printed")
    asked = parser.parse_args()
    facts = machine.described() | {"command": shlex.join(["python", "benchmarks/flood.py", *sys.argv[1:]])}
    seen = measure(asked)
    first = asked.floods[0]
    heads = ["clients of the other model", "p50, ms", "p99, ms", "worst, ms", f"p99 / p99 beside {first}"]
    rows = [row(clients, found, seen[first]) for clients, found in seen.items()]
    text = "\n".join(f"- {name}: {value}" for name, value in facts.items()) + "\n\n" + table(heads, rows) + "\n"
    print(text)
    if asked.markdown:
        asked.markdown.write_text(f"# What a flood costs the others\n\nWritten by `benchmarks/flood.py`.\n\n{text}")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
