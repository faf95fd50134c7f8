"""Where the bytes of a large request are touched: CPU time of gateway and worker by what they do with them.

    python benchmarks/touches.py [--run-s 5] [--markdown FILE]

One connection sends 12.6 MB and receives as many (the load double1) while perf samples both processes; it needs perf
and the right to use it. Shares of samples are multiplied by the CPU time that /proc shows for the same run. Beside it
stand a server in C that only reads and writes as many bytes, and one memcpy of them.
"""

from __future__ import annotations

import argparse
import fnmatch
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import floor
import machine
import tree
from changing_request import ChangingRequest
from generator import Load, drive
from measure import Bench, written
from network import network
from places import cores
from roster import BY_KEY, OURS, installed
from server import Server
from table import figure, table
from work import SCENES, Scene

STEPS = (
    ("gateway", "_copy_to_iter", "from the socket into the slot of the request, by the kernel"),
    ("worker", "*FLOAT_multiply*", "read where they lie, and the result written, by the model (y = 2x)"),
    ("worker", "*memmove*", "the result into its slot: the model has made it in memory of its own"),
    ("gateway", "_copy_from_iter", "from the slot into the socket, by the kernel"),
    ("gateway", "_raw_spin_unlock_irqrestore", "the client's core woken"),
    ("gateway", "_PyEval*", "Python of the gateway"),
    ("worker", "_PyEval*", "Python of the worker"),
)
"""Process, symbol, what it is. All else is `the rest`."""
SAMPLES_PER_S = 2999


class Recording:
    """perf, sampling two processes between the two snapshots of a load."""

    def __init__(self, program: str, file: Path, pids: Sequence[int]) -> None:
        self._words = [program, "record", "--quiet", f"--freq={SAMPLES_PER_S}", f"--output={file}"]
        self._words += [f"--pid={','.join(map(str, pids))}"]
        self._process: subprocess.Popen[bytes] | None = None
        self.shots: list[dict[int, tree.ProcessCpu]] = []

    def snapshot(self, besides: frozenset[int]) -> None:
        """Start it, or end it."""
        if self._process is None:
            self._process = subprocess.Popen(self._words)
            self.shots.append(tree.cpu(besides | {self._process.pid}))
            return
        self.shots.append(tree.cpu(besides | {self._process.pid}))
        self._process.send_signal(signal.SIGINT)
        self._process.wait()


def samples(program: str, file: Path) -> dict[tuple[int, str], float]:
    """Share of the samples by process and symbol."""
    words = [program, "report", f"--input={file}", "--stdio", "--quiet", "--sort=pid,symbol", "--field-separator=|"]
    text = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    found: dict[tuple[int, str], float] = defaultdict(float)
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) >= 3 and cells[0].endswith("%"):
            symbol = cells[2].partition("] ")[2].strip()
            found[int(cells[1].partition(":")[0]), symbol] += float(cells[0][:-1]) / 100
    return found


def measure(scene: Scene, bench: Bench, program: str) -> tuple[dict[tuple[str, str], float], float]:
    """CPU µs per request by process and symbol, and the two processes' sum by /proc."""
    with Server(BY_KEY[OURS], scene, installed(BY_KEY[OURS]), bench.network, bench.cores.before) as server:
        server.wait_until_correct()
        server.wait_until_at_rest()
        requests = written(server.requests, server.folder)
        names = {pid: each.name for pid, each in sorted(tree.cpu().items()) if each.name in ("worker", "gateway")}
        by_name = {name: pid for pid, name in reversed(names.items())}  # the spare gateway is the younger
        recording = Recording(program, server.folder / "perf", list(by_name.values()))
        load = Load(server.port, 1, bench.warm_s, bench.run_s, requests, bench.cores.client)
        found = drive(load, server.folder / "samples", recording.snapshot)
        if fault := next((fault for each in found.samples if (fault := server.fault(each))), found.first_failure):
            raise SystemExit(fault)
        shares = samples(program, server.folder / "perf")
    both = {pid: [shot[pid] for shot in recording.shots] for pid in by_name.values()}
    used_us = sum(tree.used_s({0: then}, {0: now}) for then, now in both.values()) * 1e6 / found.requests
    return {(names[pid], symbol): share * used_us for (pid, symbol), share in shares.items() if pid in both}, used_us


def lines(found: dict[tuple[str, str], float], used_us: float) -> list[list[str]]:
    """The table's cells."""
    left = dict(found)
    made: list[tuple[str, str, float]] = []
    for process, pattern, words in STEPS:
        here = [key for key in left if key[0] == process and fnmatch.fnmatch(key[1], pattern)]
        made.append((words, process, sum(left.pop(key) for key in here)))
    for process in ("gateway", "worker"):
        made.append(("the rest", process, sum(us for key, us in left.items() if key[0] == process)))
    return [[words, process, figure(us), f"{us / used_us:.0%}"] for words, process, us in made]


def least(scene: Scene, bench: Bench) -> str:
    """What the same bytes cost without Python."""
    with tempfile.TemporaryDirectory(prefix="mmsup_bench_") as name:
        peer = BY_KEY[OURS]
        requests = [ChangingRequest.of(peer.request(scene, scene.names[0], x).encode(), x) for x in scene.inputs()]
        tcp = floor.tcp(written(requests, Path(name)), scene.out_bytes, 1, bench, Path(name, "samples"))
    copy_us = floor.copy_us(scene.in_bytes, bench.cores.server)
    return (
        f"{figure(tcp.cpu_us)} µs by a server in C that reads and writes as many bytes; one memcpy {figure(copy_us)} µs"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run-s", type=float, default=5.0, help="how long the load is measured (5)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write what is printed")
    options = parser.parse_args()
    program = shutil.which("perf")
    if program is None:
        raise SystemExit("perf is needed")
    tree.adopt_orphans()
    tree.end_as_exception()
    scene = next(scene for scene in SCENES if scene.key == "double")
    bench = Bench(cores(), 1.0, options.run_s, network())
    facts = machine.describe_machine() | {"load average when it began": f"{machine.load_average():.2f}"}
    found, used_us = measure(scene, bench, program)
    facts |= {"gateway and worker": f"{figure(used_us)} µs for each request", "the same bytes": least(scene, bench)}
    facts |= {"command": shlex.join(["python", "benchmarks/touches.py", *sys.argv[1:]])}
    heads = ["12.6 MB in and out, one connection", "process", "CPU µs", "share"]
    text = "\n".join(f"- {name}: {value}" for name, value in facts.items())
    text += f"\n\n{table(heads, lines(found, used_us))}\n"
    print(text)
    if options.markdown:
        head = "# Where the bytes of a large request are touched\n\nWritten by `python benchmarks/touches.py`.\n\n"
        options.markdown.write_text(head + text)


if __name__ == "__main__":
    main()
