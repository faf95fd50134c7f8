"""Measures mmsup against a lower bound: CPU per request, beside what the kernel needs for the same bytes.

    make bench  or  python benchmarks/alone.py [--run-s 3] [--warm-s 1] [--json FILE] [--markdown FILE]

A model that doubles its input, at four sizes. The floor is measured in the same run with the same requests: a server in
C that reads each to its last byte and answers with as many bytes, one memcpy of the tensor, and the cheaper of two
bare links to another process. All server processes share one core, the client has another.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import floor
import machine
import tree
from changing_request import ChangingRequest
from links import RECORD_BYTES, LinkResult
from measure import Bench, measure, written
from network import network
from places import cores
from progress import log_progress
from roster import BY_KEY, OURS, installed
from row import Row, row_json
from table import figure, table
from work import IMAGE, LoadLevel, Scene

SIZES = (("64 B", (16,), 32), ("64 KiB", (128, 128), 8), ("602 KB", (3, 224, 224), 8), ("12.6 MB", IMAGE, 2))
LINKS = (("zeromq", 1), ("zeromq", 32), ("seqpacket", 1), ("seqpacket", 32))


@dataclass(frozen=True)
class Size:
    """One size of tensor: mmsup and the floor, many at a time and one."""

    name: str
    connections: int
    many: Row
    one: Row
    tcp_many: floor.TcpFloor
    tcp_one: floor.TcpFloor
    copy_us: float

    def floor_us(self, link_us: float) -> float:
        """The lower bound: receive, pass to another process, read the bytes once, send."""
        return self.tcp_many.cpu_us + self.copy_us + link_us


def make_scene(name: str, shape: tuple[int, ...], connections: int) -> Scene:
    """The scene of one size."""
    runs = (
        LoadLevel("many", f"{name}, {connections} connections", connections),
        LoadLevel("one", f"{name}, one connection", 1),
    )
    return Scene(f"alone {name}", "double", shape, runs, variants=2)


def measure_size(name: str, shape: tuple[int, ...], connections: int, bench: Bench) -> Size:
    """Measure mmsup, then the lower bound."""
    work, peer = make_scene(name, shape, connections), BY_KEY[OURS]
    log_progress(f"{name} ...")
    many, one = measure(peer, work, installed(peer), bench)
    for row in (many, one):
        if not row.holds:
            raise SystemExit(f"{name}: mmsup gave no good answer: {row.trouble}")
    with tempfile.TemporaryDirectory(prefix="mmsup_bench_") as text:
        folder = Path(text)
        requests = [ChangingRequest.of(peer.request(work, work.names[0], x).encode(), x) for x in work.inputs()]
        files = written(requests, folder)
        tcp = [floor.tcp(files, many.answer_bytes, run.connections, bench, folder / run.key) for run in work.runs]
    return Size(name, connections, many, one, *tcp, floor.copy_us(work.in_bytes, bench.cores.server))


def measure_links(bench: Bench) -> list[LinkResult]:
    """Each bare link, with one record and with 32."""
    log_progress("bare links ...")
    return [floor.link(name, records, bench.run_s, bench.cores.server) for name, records in LINKS]


def costs(sizes: Sequence[Size], link_us: float) -> str:
    """CPU for each request, many at a time."""
    heads = ["tensor, in and out", "conns", "TCP µs", "memcpy µs", "link µs", "floor µs", "gateway µs", "worker µs"]
    heads += ["rest µs", "mmsup µs", "÷ floor", "TCP req/s", "mmsup req/s"]
    lines = []
    for each in sizes:
        used, least = each.many.cpu_us_by_process, each.floor_us(link_us)
        split = used.get("gateway", 0.0), used.get("worker", 0.0)
        figures = [each.tcp_many.cpu_us, each.copy_us, link_us, least, *split, max(0.0, each.many.cpu_us - sum(split))]
        figures += [each.many.cpu_us, each.many.cpu_us / least, each.tcp_many.rate, each.many.rate]
        lines.append([each.name, str(each.connections), *(figure(value) for value in figures)])
    return table(heads, lines)


def latencies(sizes: Sequence[Size]) -> str:
    heads = ["tensor, in and out", "TCP p50 ms", "mmsup p50 ms", "÷ TCP", "mmsup p99 ms", "mmsup CPU µs"]
    lines = []
    for each in sizes:
        figures = [each.tcp_one.p50_ms, each.one.p50_ms, each.one.p50_ms / each.tcp_one.p50_ms, each.one.p99_ms]
        lines.append([each.name, *(figure(value) for value in (*figures, each.one.cpu_us))])
    return table(heads, lines)


def link_table(links: Sequence[LinkResult]) -> str:
    heads = [
        "link",
        "records a frame",
        "near end µs/record",
        "far end µs/record",
        "both µs/record",
        "round trip p50 µs",
    ]
    return table(
        heads,
        [
            [
                each.name,
                str(each.records),
                *map(figure, (each.near_us, each.far_us, each.cpu_us, each.round_trip_p50_us)),
            ]
            for each in links
        ],
    )


def report(facts: dict[str, str], sizes: Sequence[Size], links: Sequence[LinkResult]) -> str:
    least = min(each.cpu_us for each in links)
    return "\n\n".join(
        [
            "\n".join(f"- {name}: {value}" for name, value in facts.items()),
            "## CPU for each request",
            costs(sizes, least),
            "## One connection",
            latencies(sizes),
            f"## Bare links: records of {RECORD_BYTES} bytes, there and back",
            link_table(links),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run-s", type=float, default=3.0, help="how long each load is measured (3)")
    parser.add_argument("--warm-s", type=float, default=1.0, help="how long it runs before (1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write what is printed")
    options = parser.parse_args()
    tree.adopt_orphans()
    tree.end_as_exception()
    facts = machine.describe_machine() | {
        "others on the machine when it began": f"load average {machine.load_average():.2f}"
    }
    bench = Bench(cores(), options.warm_s, options.run_s, network())
    facts |= {"each load": f"{options.warm_s:g} s to warm, {options.run_s:g} s measured, once"}
    facts |= {"command": shlex.join(["python", "benchmarks/alone.py", *sys.argv[1:]])}
    links = measure_links(bench)
    sizes = [measure_size(*each, bench) for each in SIZES]
    text = report(facts, sizes, links)
    print(text)
    if options.markdown:
        options.markdown.write_text(f"# mmsup against the floor\n\nWritten by `make bench`.\n\n{text}\n")
    if options.json:
        found = [asdict(each) | {"many": row_json(each.many), "one": row_json(each.one)} for each in sizes]
        options.json.write_text(
            json.dumps({"facts": facts, "links": [asdict(each) for each in links], "sizes": found}, indent=1)
        )


if __name__ == "__main__":
    main()
