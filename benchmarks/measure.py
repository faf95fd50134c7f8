"""Measures a server under the loads of a scene: rate, latency, and CPU per process."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import tree
from changing_request import ChangingRequest
from drivers.peer import Peer, V2Peer
from environment import InstallError, environment
from generator import Load, LoadResult, drive
from network import OnnxNetwork
from places import HERE, Cores
from row import Row
from server import Server, StartError, WrongAnswerError
from work import LoadLevel, Scene


@dataclass(frozen=True)
class Bench:
    """Parameters of every measurement."""

    cores: Cores
    warm_s: float
    run_s: float
    network: OnnxNetwork


def measure(
    peer: Peer, scene: Scene, installed: Path, bench: Bench, arrange: Callable[[], None] = lambda: None
) -> Iterator[Row]:
    """Start a server, measure every load of the scene; `arrange` is called when it serves."""
    left = [run for run in scene.runs if _speaks(peer, run)]
    if not left:
        return
    try:
        with Server(peer, scene, installed, bench.network, bench.cores.before) as server:
            server.wait_until_correct()
            arrange()
            restless = server.wait_until_at_rest()
            requests = written(server.requests, server.folder)
            while left:
                row = _load(server, peer, scene, left[0], requests, bench)
                row.note = "; ".join(filter(None, (row.note, restless)))
                yield row
                left.pop(0)
    except (StartError, InstallError, RuntimeError, OSError) as error:
        print(f"{peer.name}, {scene.key}: {error}", file=sys.stderr, flush=True)
        wrong = int(isinstance(error, WrongAnswerError))
        for run in left:
            yield Row(peer.key, run.key, wrong=wrong, trouble=str(error))


def _speaks(peer: Peer, run: LoadLevel) -> bool:
    """Whether a server understands the client: one that writes requests itself writes them in its own protocol."""
    return run.client != "tritonclient" or isinstance(peer, V2Peer)


def written(requests: Iterable[ChangingRequest], folder: Path) -> list[Path]:
    """Write each request to a file for the load generator."""
    files = []
    for place, request in enumerate(requests):
        files.append(folder / f"request.{place}")
        request.write(files[-1])
    return files


def client_command(client: str) -> list[str]:
    """The command of a client library (client.py), installed if missing."""
    return [str(environment("clients") / "bin" / "python"), str(HERE / "client.py"), client]


def _load(server: Server, peer: Peer, scene: Scene, run: LoadLevel, requests: Sequence[Path], bench: Bench) -> Row:
    """Warm up, measure, check the answers."""
    shots: list[dict[int, tree.ProcessCpu]] = []
    warm_s = max(bench.warm_s, peer.warm_s)
    client = client_command(run.client) if run.client else ()
    load = Load(server.port, run.connections, warm_s, bench.run_s, requests, bench.cores.client, client=client)
    known = server.known_requests()
    found = drive(load, server.folder / run.key, lambda besides: shots.append(tree.cpu(besides)))
    faults = [fault for sample in found.samples if (fault := server.fault(sample))]
    row = Row(peer.key, run.key, note=peer.note(scene), requests=found.requests, failures=found.failures)
    row.checked, row.wrong = len(found.samples), len(faults)
    row.answer_bytes = len(found.samples[0].body) if found.samples else 0
    row.trouble = faults[0] if faults else found.first_failure
    if not found.requests and not row.trouble:
        row.trouble = f"no answer within the run, and one was waited for {found.oldest_us / 1e6:.1f} s"
    row.command = server.command
    if known is not None:
        row.known_share = ((server.known_requests() or known) - known) / max(1, found.sent)
    _times(row, scene, found)
    _cpu(row, found, *shots)
    return row


def _times(row: Row, scene: Scene, found: LoadResult) -> None:
    row.rate = found.requests / found.elapsed_s
    row.megabytes_s = row.rate * (scene.in_bytes + scene.out_bytes) / 1e6
    row.p50_ms, row.p99_ms = found.p50_us / 1e3, found.p99_us / 1e3
    row.p999_ms, row.max_ms = found.p999_us / 1e3, found.max_us / 1e3
    row.client_busy = found.client_cpu_s / found.elapsed_s


def _cpu(row: Row, found: LoadResult, before: dict[int, tree.ProcessCpu], after: dict[int, tree.ProcessCpu]) -> None:
    """CPU time of each process between the two readings, per request."""
    nothing = tree.ProcessCpu("", 0.0, 0.0)
    by_name: dict[str, float] = defaultdict(float)
    system_by_name: dict[str, float] = defaultdict(float)
    for pid, now in after.items():
        then = before.get(pid, nothing)
        system_by_name[now.name] += now.system_s - then.system_s
        by_name[now.name] += now.user_s - then.user_s + now.system_s - then.system_s
    share = 1e6 / max(1, found.requests)
    row.cpu_us_by_process = {name: round(used * share, 3) for name, used in by_name.items() if used}
    row.system_us_by_process = {name: round(used * share, 3) for name, used in system_by_name.items() if used}
    row.cpu_us, row.system_us = sum(by_name.values()) * share, sum(system_by_name.values()) * share
    row.server_busy = sum(by_name.values()) / found.elapsed_s
