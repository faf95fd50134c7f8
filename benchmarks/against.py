"""CPU time per request of two checkouts of mmsup, measured in turn in one run.

    python benchmarks/against.py --base PATH [--checkout PATH] [--rounds 7] [--run-s 2] [--warm-s 0.5] [--json FILE]

Each round starts a server of either checkout for each encoding (binary, JSON), the order reversed every other round,
and drives it over 1 and over 32 connections with tensors of 16 floats. All processes of the server share one core, the
client has another. What the machine does beside meets both alike: compare by the ratio, which is formed per round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import machine
import tree
from checkout import HERE, commit_of, make_environment
from measure import Bench, measure
from network import network
from places import cores
from progress import log_progress
from roster import BY_KEY, OURS
from row import Row
from table import figure, table
from work import LoadLevel, Scene

RUNS = (LoadLevel("one", "1 connection", 1), LoadLevel("many", "32 connections", 32))
SCENES = (Scene("binary", "scale", (16,), RUNS), Scene("JSON", "scale", (16,), RUNS, binary=False))
PROCESSES = ("gateway", "worker", "all")


@dataclass(frozen=True)
class Comparison:
    """CPU of one kind of process under one load, microseconds per request; one figure per round and checkout."""

    encoding: str
    connections: int
    process: str
    base_us: list[float]
    ours_us: list[float]

    @property
    def ratios(self) -> list[float]:
        """Ours over base, per round."""
        return [ours / base for ours, base in zip(self.ours_us, self.base_us, strict=True)]

    def cells(self) -> list[str]:
        ratios = sorted(self.ratios)
        medians = [figure(statistics.median(each)) for each in (self.base_us, self.ours_us)]
        spread = f"{ratios[0]:.3f} to {ratios[-1]:.3f}"
        return [
            f"{self.encoding}, {self.connections}",
            self.process,
            *medians,
            f"{statistics.median(ratios):.3f}",
            spread,
        ]


def measure_round(environments: list[Path], bench: Bench, *, is_reversed: bool) -> dict[tuple[str, str, int], Row]:
    """Every load on every checkout: by encoding, load, and the checkout's place in `environments`."""
    rows = {}
    for scene in SCENES:
        for place in reversed(range(len(environments))) if is_reversed else range(len(environments)):
            for row in measure(BY_KEY[OURS], scene, environments[place], bench):
                if not row.holds:
                    raise SystemExit(f"{scene.key}, {row.run}: no good answer: {row.trouble}")
                rows[scene.key, row.run, place] = row
    return rows


def comparisons(rounds: list[dict[tuple[str, str, int], Row]]) -> Iterator[Comparison]:
    """All rounds, by load and process."""
    for scene in SCENES:
        for run in scene.runs:
            for process in PROCESSES:
                both = [[_cpu_us(each[scene.key, run.key, place], process) for each in rounds] for place in (0, 1)]
                yield Comparison(scene.key, run.connections, process, *both)


def _cpu_us(row: Row, process: str) -> float:
    return row.cpu_us if process == "all" else row.cpu_us_by_process[process]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, metavar="PATH", help="the checkout to compare with")
    parser.add_argument("--checkout", type=Path, default=HERE, metavar="PATH", help="the other one; else this")
    parser.add_argument("--rounds", type=int, default=7, help="how often everything is measured (7)")
    parser.add_argument("--run-s", type=float, default=2.0, help="how long each load is measured (2)")
    parser.add_argument("--warm-s", type=float, default=0.5, help="how long it runs before (0.5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure of every round")
    options = parser.parse_args()
    tree.adopt_orphans()
    tree.end_as_exception()
    bench = Bench(cores(), options.warm_s, options.run_s, network())
    checkouts = [options.base, options.checkout]
    with tempfile.TemporaryDirectory(prefix="mmsup_bench_") as text:
        environments = [Path(text) / str(place) for place in range(len(checkouts))]
        for folder, checkout in zip(environments, checkouts, strict=True):
            make_environment(folder, checkout)
        rounds = []
        for number in range(options.rounds):
            log_progress(f"round {number + 1} of {options.rounds} ...")
            rounds.append(measure_round(environments, bench, is_reversed=bool(number % 2)))
    found = list(comparisons(rounds))
    base, ours = (commit_of(each) for each in checkouts)
    heads = ["encoding, connections", "process", f"{base} µs", f"{ours} µs", "ratio", "its range"]
    facts = machine.describe_machine() | {"load average after": f"{machine.load_average():.2f}"}
    print(*(f"- {name}: {value}" for name, value in facts.items()), "", sep="\n")
    print(f"CPU per request, medians of {options.rounds} rounds; ratio is {ours} over {base}.\n")
    print(table(heads, [each.cells() for each in found]))
    if options.json:
        options.json.write_text(
            json.dumps({"base": base, "ours": ours, "loads": [asdict(each) for each in found]}) + "\n"
        )


if __name__ == "__main__":
    main()
