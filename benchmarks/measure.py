"""One row of the table: a server under one load, with what its processes cost."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import tree
from drivers.peer import Peer
from environment import InstallError
from generator import Load, Outcome, drive
from network import Network
from places import Cores
from server import ServeError, Server
from work import Run, Scene

SETTLE_S = 1.0


@dataclass(frozen=True)
class Bench:
    """How everything is measured, alike for all."""

    cores: Cores
    warm_s: float
    run_s: float
    network: Network


@dataclass
class Row:
    """One load on one server. CPU is of all its processes together, in microseconds for each request."""

    peer: str
    run: str
    rate: float = 0.0
    megabytes_s: float = 0.0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    p999_ms: float = 0.0
    max_ms: float = 0.0
    cpu_us: float = 0.0
    system_us: float = 0.0
    cpu_us_by_process: dict[str, float] = field(default_factory=dict)
    server_busy: float = 0.0
    """The share of its core that the server used."""
    client_busy: float = 0.0
    """The same of the client: near 1 it is the client that was measured."""
    requests: int = 0
    failures: int = 0
    checked: int = 0
    """Answers of the run that were looked at."""
    wrong: int = 0
    trouble: str = ""
    note: str = ""

    @property
    def holds(self) -> bool:
        """Whether this is a result at all."""
        return bool(self.requests) and not self.failures and not self.wrong


def measure(peer: Peer, scene: Scene, environment: Path, bench: Bench) -> Iterator[Row]:
    """Every load of a scene on a server that was started for it."""
    try:
        with Server(peer, scene, environment, bench.network, bench.cores.server) as server:
            server.wait_until_right()
            requests = _written(server)
            for run in scene.runs:
                yield _load(server, peer, scene, run, requests, bench)
    except (ServeError, InstallError, RuntimeError, OSError) as error:
        print(f"{peer.name}, {scene.key}: {error}", file=sys.stderr, flush=True)
        for run in scene.runs:
            yield Row(peer.key, run.key, trouble=str(error))


def _written(server: Server) -> list[Path]:
    files = []
    for place, request in enumerate(server.requests()):
        files.append(server.folder / f"request.{place}")
        files[-1].write_bytes(request.bytes())
    return files


def _load(server: Server, peer: Peer, scene: Scene, run: Run, requests: Sequence[Path], bench: Bench) -> Row:
    """Warm up, measure, look at the answers."""
    shots: list[dict[int, tree.Cpu]] = []
    load = Load(server.port, run.connections, bench.warm_s, bench.run_s, requests, bench.cores.client)
    found = drive(load, server.folder / run.key, lambda besides: shots.append(tree.cpu(besides)))
    faults = [fault for place, body in found.samples if (fault := server.fault(place, body))]
    row = Row(peer.key, run.key, note=peer.note(scene), requests=found.requests, failures=found.failures)
    row.checked, row.wrong = len(found.samples), len(faults)
    row.trouble = faults[0] if faults else found.first_failure
    _times(row, scene, found)
    _cpu(row, found, *shots)
    return row


def _times(row: Row, scene: Scene, found: Outcome) -> None:
    row.rate = found.requests / found.elapsed_s
    row.megabytes_s = row.rate * (scene.in_bytes + scene.out_bytes) / 1e6
    row.p50_ms, row.p99_ms = found.p50_us / 1e3, found.p99_us / 1e3
    row.p999_ms, row.max_ms = found.p999_us / 1e3, found.max_us / 1e3
    row.client_busy = found.client_cpu_s / found.elapsed_s


def _cpu(row: Row, found: Outcome, before: dict[int, tree.Cpu], after: dict[int, tree.Cpu]) -> None:
    """What each process used between the two, given to the requests."""
    nothing = tree.Cpu("", 0.0, 0.0)
    by_name: dict[str, float] = defaultdict(float)
    system_s = 0.0
    for pid, now in after.items():
        then = before.get(pid, nothing)
        system_s += now.system_s - then.system_s
        by_name[now.name] += now.user_s - then.user_s + now.system_s - then.system_s
    share = 1e6 / max(1, found.requests)
    row.cpu_us_by_process = {name: round(used * share, 3) for name, used in by_name.items() if used}
    row.cpu_us, row.system_us = sum(by_name.values()) * share, system_s * share
    row.server_busy = sum(by_name.values()) / found.elapsed_s


def plain(row: Row) -> dict[str, object]:
    """As JSON keeps it."""
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(row).items()}
