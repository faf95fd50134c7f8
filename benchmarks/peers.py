"""mmsup beside the servers that people use: same models, same bytes, one core for the server, one for the client.

    make bench-peers  or  python benchmarks/peers.py [--peers mmsup,mosec] [--scenes small,json] [--rounds 3] ...

Each server is installed when it is first needed, started for each scene, asked until its answers are right, warmed,
measured, and ended with all that it started. Rounds are interleaved: every server has its turn before any has its next,
so that a machine that grows slower does so for all. The row with the median rate is kept. The exit code is 1 if any
answer was wrong; a target that was missed does not change it.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import machine
import targets
import tree
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
    """Why a server is not there."""
    measured: dict[tuple[str, str], list[Row]] = field(default_factory=dict)

    def install(self, peers: Sequence[Peer]) -> dict[str, NamedServer]:
        """What is not there yet; the names and versions of all."""
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
        """Scene by scene, and in each of them round by round. Ctrl-C ends it; what was measured so far is kept."""
        try:
            for scene in scenes:
                for turn in range(self.rounds):
                    for peer in peers:
                        self._measure_once(peer, scene, turn)
        except KeyboardInterrupt:
            log_progress("interrupted: what follows is of what was measured so far")

    def _measure_once(self, peer: Peer, scene: Scene, turn: int) -> None:
        for row in self._rows(peer, scene, is_again=turn > 0):
            self.measured.setdefault((peer.key, row.run), []).append(row)
            rate = f"{row.rate:10,.1f}/s  p50 {row.p50_ms:9.3f} ms  CPU {row.cpu_us:10,.1f} µs"
            found = f"{rate if row.requests else ''}  {row.trouble[:200]}"
            log_progress(f"  {turn + 1}/{self.rounds} {row.run:8} {peer.name:22} {found}")

    def _rows(self, peer: Peer, scene: Scene, *, is_again: bool) -> Iterator[Row]:
        """A server that is not there, or did not start in the first round, is not tried again."""
        if peer.key in self.missing:
            why = self.missing[peer.key]
            return iter([] if is_again else [Row(peer.key, run.key, trouble=why) for run in scene.runs])
        if is_again and not any(self.measured[peer.key, run.key][0].requests for run in scene.runs):
            return iter([])
        return measure(peer, scene, self.environments[peer.key], self.bench)

    def rows(self) -> list[Row]:
        """The median of the rounds of each load on each server."""
        return [median(rows) for rows in self.measured.values()]


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=_keys, default=[peer.key for peer in PEERS], help="which servers, by key")
    parser.add_argument("--scenes", type=_keys, default=[scene.key for scene in SCENES], help="which scenes, by key")
    parser.add_argument("--run-s", type=float, default=5.0, help="how long each load is measured (5)")
    parser.add_argument("--warm-s", type=float, default=2.0, help="how long it runs before (2)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each server has its turn (3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round of every server")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write what is printed")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw it, as PNG files")
    parser.add_argument("--list", action="store_true", help="print the keys of servers and scenes, and end")
    asked = parser.parse_args()
    for unknown in {*asked.peers} - {*BY_KEY} | {*asked.scenes} - {scene.key for scene in SCENES}:
        parser.error(f"there is no {unknown!r}: see --list")
    return asked


def _keys(text: str) -> list[str]:
    return text.split(",")


def list_all() -> None:
    """The keys."""
    for peer in PEERS:
        print(f"{peer.key:12} {peer.name}")
    for scene in SCENES:
        print(f"{scene.key:12} {', '.join(f'{run.key} ({run.title})' for run in scene.runs)}")


def facts(asked: argparse.Namespace, bench: Bench, before: float, took_s: float) -> dict[str, str]:
    """What the figures are to be read with."""
    network_ms = " and ".join(f"{bench.network.cost_ms(rows):.2f} ms for {rows}" for rows in (1, 16))
    return machine.describe_machine() | {
        "others on the machine when it began": f"load average {before:.2f}",
        "cores": f"all processes of the server on core {bench.cores.server}, the client on core {bench.cores.client}",
        "each load": f"{asked.warm_s:g} s to warm, {asked.run_s:g} s measured, {asked.rounds} interleaved rounds, "
        "the row with the median rate",
        "the network of mlp alone": f"{network_ms} rows",
        "command": shlex.join(["python", "benchmarks/peers.py", *sys.argv[1:]]),
        "took": f"{took_s / 60:.0f} min",
    }


def write(asked: argparse.Namespace, text: str, comparison: Comparison, known: dict[str, str]) -> None:
    """Print it, and leave the files that were asked for."""
    print(text)
    if asked.markdown:
        asked.markdown.parent.mkdir(parents=True, exist_ok=True)
        asked.markdown.write_text(f"# mmsup beside other servers\n\nWritten by `make bench-peers`.\n\n{text}")
    if asked.json:
        rounds = [row_json(row) for rows in comparison.measured.values() for row in rows]
        kept = [row_json(row) for row in comparison.rows()]
        asked.json.write_text(json.dumps({"facts": known, "kept": kept, "rounds": rounds}, indent=1) + "\n")
    if asked.plots:
        import plots  # noqa: PLC0415 - it needs matplotlib, which nothing else here does

        plots.draw(comparison.rows(), {peer.key: peer.name for peer in PEERS}, asked.plots, known)


def main() -> None:
    """As the arguments say."""
    asked = arguments()
    if asked.list:
        return list_all()
    tree.adopt_orphans()
    tree.end_as_exception()
    began, before = time.monotonic(), machine.load_average()
    comparison = Comparison(Bench(cores(), asked.warm_s, asked.run_s, network()), asked.rounds)
    peers = [peer for peer in PEERS if peer.key in asked.peers]
    named = comparison.install(peers)
    comparison.run(peers, [scene for scene in SCENES if scene.key in asked.scenes])
    rows = comparison.rows()
    known = facts(asked, comparison.bench, before, time.monotonic() - began)
    said = targets.judge(rows, {peer.key for peer in PEERS if peer.speaks_oip})
    said = [each for each in said if each.target.run in {row.run for row in rows}]
    write(asked, report(known, named, rows, said), comparison, known)
    sys.exit(any(row.wrong for row in rows))


if __name__ == "__main__":
    main()
