"""A server under the loads of a scene, with what its processes cost."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import tree
from drivers.peer import Peer
from environment import InstallError
from generator import Load, LoadResult, drive
from network import OnnxNetwork
from places import Cores
from row import Row
from server import Server, StartError, WrongAnswerError
from wire import RequestBytes
from work import LoadLevel, Scene


@dataclass(frozen=True)
class Bench:
    """How everything is measured, alike for all."""

    cores: Cores
    warm_s: float
    run_s: float
    network: OnnxNetwork


def measure(
    peer: Peer, scene: Scene, environment: Path, bench: Bench, arrange: Callable[[], None] = lambda: None
) -> Iterator[Row]:
    """Every load of a scene on a server that was started for it; `arrange` is called when it serves."""
    left = list(scene.runs)
    try:
        with Server(peer, scene, environment, bench.network, bench.cores.before) as server:
            server.wait_until_correct()
            arrange()
            requests = written(server.requests(), server.folder)
            while left:
                yield _load(server, peer, scene, left[0], requests, bench)
                left.pop(0)
    except (StartError, InstallError, RuntimeError, OSError) as error:
        print(f"{peer.name}, {scene.key}: {error}", file=sys.stderr, flush=True)
        wrong = int(isinstance(error, WrongAnswerError))
        for run in left:
            yield Row(peer.key, run.key, wrong=wrong, trouble=str(error))


def written(requests: Iterable[RequestBytes], folder: Path) -> list[Path]:
    """Each request as a file, as the load generator takes them."""
    files = []
    for place, request in enumerate(requests):
        files.append(folder / f"request.{place}")
        files[-1].write_bytes(request.encode())
    return files


def _load(server: Server, peer: Peer, scene: Scene, run: LoadLevel, requests: Sequence[Path], bench: Bench) -> Row:
    """Warm up, measure, look at the answers."""
    shots: list[dict[int, tree.ProcessCpu]] = []
    warm_s = max(bench.warm_s, peer.warm_s)
    load = Load(server.port, run.connections, warm_s, bench.run_s, requests, bench.cores.client)
    found = drive(load, server.folder / run.key, lambda besides: shots.append(tree.cpu(besides)))
    faults = [fault for place, body in found.samples if (fault := server.fault(place, body))]
    row = Row(peer.key, run.key, note=peer.note(scene), requests=found.requests, failures=found.failures)
    row.checked, row.wrong = len(found.samples), len(faults)
    row.answer_bytes = len(found.samples[0][1]) if found.samples else 0
    row.trouble = faults[0] if faults else found.first_failure
    if not found.requests and not row.trouble:
        row.trouble = f"no answer within the run, and one was waited for {found.oldest_us / 1e6:.1f} s"
    row.command = server.command
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
    """What each process used between the two, given to the requests."""
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
