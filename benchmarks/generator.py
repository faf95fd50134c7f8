"""Runs the load generator (load.c) as a child process on its own core."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Timer
from typing import NamedTuple

from places import program

URGENT = 50
"""Its priority with SCHED_FIFO, 1 to 99."""
TIMEOUT_S = 60.0
"""How long the generator may take to report after the run."""


@dataclass(frozen=True)
class Load:
    """The parameters of one load."""

    port: int
    connections: int
    warm_s: float
    run_s: float
    requests: Sequence[Path]
    core: int
    rate: float = 0.0
    """Requests per second (open loop); 0: each connection sends when it has its reply (closed loop)."""
    is_urgent: bool = False
    """Run with SCHED_FIFO, as root, so that waiting for its core is not part of the latency."""
    client: Sequence[str] = ()
    """The command of another client, which takes the same arguments and reports in the same words."""


class Sample(NamedTuple):
    """A reply's body that was kept."""

    request: int
    """Its place in the list."""
    serial: int
    """The number that the values of the request follow from."""
    body: bytes


@dataclass(frozen=True)
class LoadResult:
    """The generator's report; times in microseconds."""

    requests: int
    elapsed_s: float
    failures: int
    first_failure: str
    reconnects: int
    p50_us: float
    p99_us: float
    p999_us: float
    max_us: float
    client_cpu_s: float
    oldest_us: float
    """Age of the oldest unanswered request at the end: shows a server that loses one."""
    received_bytes: int
    sent: int
    """All requests that were sent, also before the measured time."""
    samples: tuple[Sample, ...] = ()


def drive(load: Load, folder: Path, snapshot: Callable[[frozenset[int]], None]) -> LoadResult:
    """Run the load; `snapshot` is called at start and end of the measured time, with the generator's pid."""
    folder.mkdir()
    pace = f"{load.connections}@{load.rate}" if load.rate else str(load.connections)
    command = ["chrt", "--fifo", str(URGENT)] if load.is_urgent else []
    command += ["taskset", "-c", str(load.core), *(load.client or [str(program("load"))]), "127.0.0.1"]
    command += [str(load.port), pace, str(load.warm_s), str(load.run_s), str(folder)]
    command += [str(each) for each in load.requests]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        limit = Timer(load.warm_s + load.run_s + TIMEOUT_S, child.kill)
        limit.start()
        try:
            for word in ("begin\n", "end\n"):
                if child.stdout.readline() != word:
                    raise RuntimeError(f"the load generator ended: {child.stderr.read().strip()}")
                snapshot(frozenset({child.pid}))
            found = json.loads(child.stdout.read())
        finally:
            limit.cancel()
            child.kill()
    return LoadResult(**found, samples=tuple(_samples(folder)))


def _samples(folder: Path) -> Iterator[Sample]:
    for file in sorted(folder.iterdir()):
        request, _, serial = file.name.partition(".")
        yield Sample(int(request), int(serial), file.read_bytes())
        file.unlink()
