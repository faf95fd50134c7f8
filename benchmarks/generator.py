"""The load generator (load.c) as a child on its own core, and what it found."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Timer

from places import program

URGENT = 50
"""Of the priorities of SCHED_FIFO, 1 to 99."""
TIMEOUT_S = 60.0
"""For the generator to write its report, past the time that it was told to run."""


@dataclass(frozen=True)
class Load:
    """One load: how hard, how long, with which requests."""

    port: int
    connections: int
    warm_s: float
    run_s: float
    requests: Sequence[Path]
    core: int
    rate: float = 0.0
    """Requests a second, each at its time; 0: each connection sends when it has its reply."""
    is_urgent: bool = False
    """It runs before everyone else on its core (SCHED_FIFO, as root): what it sees is then not the wait for that."""


@dataclass(frozen=True)
class LoadResult:
    """What the generator saw. Times in microseconds."""

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
    """The age of the oldest request that was still unanswered at the end: a server that forgets one shows here."""
    received_bytes: int
    samples: tuple[tuple[int, bytes], ...] = ()
    """Bodies from within the run, each with the place of its request in the list."""


def drive(load: Load, folder: Path, snapshot: Callable[[frozenset[int]], None]) -> LoadResult:
    """Run it; `snapshot` is called as the measured time begins and ends, with the pid that is not the server's."""
    folder.mkdir()
    pace = f"{load.connections}@{load.rate}" if load.rate else str(load.connections)
    command = ["chrt", "--fifo", str(URGENT)] if load.is_urgent else []
    command += ["taskset", "-c", str(load.core), str(program("load")), "127.0.0.1"]
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


def _samples(folder: Path) -> Iterator[tuple[int, bytes]]:
    for file in sorted(folder.iterdir()):
        yield int(file.name.partition(".")[0]), file.read_bytes()
        file.unlink()
