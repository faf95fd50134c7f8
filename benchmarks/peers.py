"""Compares mmsup with other model servers: same models, same bytes, one core for the server, one for the client.

    make bench-peers  or  python benchmarks/peers.py [--peers mmsup,mosec] [--scenes small,json] [--rounds 3] ...

Each server is installed on first use, started for each scene, checked until its answers are right, left alone until it
is at rest, warmed up, measured, and stopped with all its processes. Rounds are interleaved: every server is measured
once before any is measured again, each round begins with another server, and the median of each figure is kept. With
--base another checkout of mmsup is one more server. The exit code is 1 if any answer was wrong; a missed target does
not change it.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import bare_network
import machine
import targets
import tree
from bare_network import BARE, NAME
from checkout import commit_of, make_environment
from drivers.mmsup import at_checkout
from drivers.peer import Peer
from environment import InstallError, version
from measure import Bench, measure
from network import network
from places import cores
from progress import log_progress
from report import NamedServer, report
from roster import BY_KEY, PEERS, installed
from row import Row, median, row_json
from work import SCENES, Scene


@dataclass
class Comparison:
    """Every round of every server."""

    bench: Bench
    rounds: int
    environments: dict[str, Path] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    """Why a server is missing."""
    measured: dict[tuple[str, str], list[Row]] = field(default_factory=dict)

    def install(self, peers: Sequence[Peer]) -> dict[str, NamedServer]:
        """Install what is missing; returns names and versions."""
        named = {}
        for peer in peers:
            found = ""
            try:
                self.environments[peer.key] = installed(peer)
                found = version(self.environments[peer.key], peer.package)
            except (InstallError, OSError) as error:
                self.missing[peer.key] = f"not installed: {error}"
                log_progress(f"{peer.name}: {self.missing[peer.key]}")
            named[peer.key] = NamedServer(peer.name, found)
        return named

    def run(self, peers: Sequence[Peer], scenes: Sequence[Scene]) -> None:
        """Measure scene by scene, each in rounds. Ctrl-C ends it; what was measured so far is kept."""
        try:
            for scene in scenes:
                for turn in range(self.rounds):
                    first = turn % max(1, len(peers))
                    for peer in (*peers[first:], *peers[:first]):
                        self._measure_once(peer, scene, turn)
                    if scene.model == "mlp":
                        self._note(NAME, bare_network.measure(scene, self.bench), turn)
        except KeyboardInterrupt:
            log_progress("interrupted: what follows is of what was measured so far")

    def _measure_once(self, peer: Peer, scene: Scene, turn: int) -> None:
        self._note(peer.name, self._rows(peer, scene, is_again=turn > 0), turn)

    def _note(self, name: str, rows: Iterable[Row], turn: int) -> None:
        for row in rows:
            self.measured.setdefault((row.peer, row.run), []).append(row)
            figures = f"CPU {row.cpu_us:10,.1f} µs  p50 {row.p50_ms:9.3f} ms {row.rate:10,.1f}/s"
            found = f"{figures if row.requests else ''}  {row.note[:80]}  {row.trouble[:200]}"
            log_progress(f"  {turn + 1}/{self.rounds} {row.run:13} {name:22} {found}")

    def _rows(self, peer: Peer, scene: Scene, *, is_again: bool) -> Iterator[Row]:
        """A server that is missing is not tried again, nor one that did not start in two rounds."""
        if peer.key in self.missing:
            why = self.missing[peer.key]
            return iter([] if is_again else [Row(peer.key, run.key, trouble=why) for run in scene.runs])
        before = [row for run in scene.runs for row in self.measured.get((peer.key, run.key), [])]
        if len(before) >= 2 * len(scene.runs) and not any(row.requests for row in before):
            return iter([])
        return measure(peer, scene, self.environments[peer.key], self.bench)

    def rows(self) -> list[Row]:
        """The medians of the rounds of each load on each server."""
        return [median(rows) for rows in self.measured.values()]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=_keys, default=[peer.key for peer in PEERS], help="which servers, by key")
    parser.add_argument("--scenes", type=_keys, default=[scene.key for scene in SCENES], help="which scenes, by key")
    parser.add_argument("--run-s", type=float, default=5.0, help="how long each load is measured (5)")
    parser.add_argument("--warm-s", type=float, default=2.0, help="how long it runs before (2)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each server has its turn (3)")
    parser.add_argument("--base", type=Path, metavar="PATH", help="another checkout of mmsup, as one more server")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round of every server")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write what is printed")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw it, as PNG files")
    parser.add_argument("--list", action="store_true", help="print the keys of servers and scenes, and end")
    options = parser.parse_args()
    for unknown in {*options.peers} - {*BY_KEY} | {*options.scenes} - {scene.key for scene in SCENES}:
        parser.error(f"there is no {unknown!r}: see --list")
    return options


def _keys(text: str) -> list[str]:
    return text.split(",")


def list_all() -> None:
    for peer in PEERS:
        print(f"{peer.key:12} {peer.name}")
    for scene in SCENES:
        print(f"{scene.key:12} {', '.join(f'{run.key} ({run.title})' for run in scene.runs)}")


def facts(options: argparse.Namespace, bench: Bench, before: float, took_s: float) -> dict[str, str]:
    """The conditions of the run."""
    network_ms = " and ".join(f"{bench.network.cost_ms(rows):.2f} ms for {rows}" for rows in (1, 16))
    return machine.describe_machine() | {
        "others on the machine when it began": f"load average {before:.2f}",
        "cores": f"all processes of the server on core {bench.cores.server}, the client on core {bench.cores.client}",
        "each load": f"{options.warm_s:g} s to warm, {options.run_s:g} s measured, "
        f"{options.rounds} interleaved rounds, the median of each figure",
        "the network of mlp alone": f"{network_ms} rows",
        "command": _command(options),
        "took": f"{took_s / 60:.0f} min",
    }


def _command(options: argparse.Namespace) -> str:
    """The command without the place of the other checkout, whose commit stands in the tables."""
    text = shlex.join(["python", "benchmarks/peers.py", *sys.argv[1:]])
    return text.replace(str(options.base), "CHECKOUT") if options.base else text


def write(
    options: argparse.Namespace,
    text: str,
    comparison: Comparison,
    known: dict[str, str],
    named: dict[str, NamedServer],
) -> None:
    """Print the report and write the requested files."""
    print(text)
    if options.markdown:
        options.markdown.parent.mkdir(parents=True, exist_ok=True)
        options.markdown.write_text(f"# mmsup beside other servers\n\nWritten by `make bench-peers`.\n\n{text}")
    if options.json:
        rounds = [row_json(row) for rows in comparison.measured.values() for row in rows]
        kept = [row_json(row) for row in comparison.rows()]
        options.json.write_text(json.dumps({"facts": known, "kept": kept, "rounds": rounds}, indent=1) + "\n")
    if options.plots:
        import plots  # noqa: PLC0415 - it needs matplotlib, which nothing else here does

        plots.draw(comparison.rows(), {key: server.name for key, server in named.items()}, options.plots, known)


def main() -> None:
    options = arguments()
    if options.list:
        return list_all()
    tree.adopt_orphans()
    tree.end_as_exception()
    began, before = time.monotonic(), machine.load_average()
    comparison = Comparison(Bench(cores(), options.warm_s, options.run_s, network()), options.rounds)
    peers = [peer for peer in PEERS if peer.key in options.peers]
    named = comparison.install(peers) | {BARE: NamedServer(NAME, version(Path(sys.prefix), "onnxruntime"))}
    with tempfile.TemporaryDirectory(prefix="mmsup_bench_") as folder:
        if options.base:
            base = at_checkout(commit_of(options.base))
            comparison.environments[base.key] = Path(folder, "base")
            make_environment(Path(folder, "base"), options.base)
            named[base.key] = NamedServer(base.name, version(Path(folder, "base"), base.package))
            peers = [base, *peers]
        comparison.run(peers, [scene for scene in SCENES if scene.key in options.scenes])
    rows = comparison.rows()
    known = facts(options, comparison.bench, before, time.monotonic() - began)
    verdicts = targets.judge(rows, {peer.key for peer in PEERS if peer.speaks_oip})
    verdicts = [each for each in verdicts if each.target.run in {row.run for row in rows}]
    write(options, report(known, named, rows, verdicts), comparison, known, named)
    sys.exit(any(row.wrong for row in rows))


if __name__ == "__main__":
    main()
