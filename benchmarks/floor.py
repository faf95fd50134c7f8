"""What cannot be had for less on this machine: the kernel's TCP, one pass over the bytes, a bare link."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tree
from generator import Load, drive
from links import LinkResult
from measure import Bench
from places import HERE, program

Bytes = npt.NDArray[np.uint8]
COPY_TIMES = 30
"""Of which the best counts."""
LINK_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class TcpFloor:
    """An answer to an HTTP request that nobody has looked at."""

    cpu_us: float
    p50_ms: float
    rate: float


def tcp(requests: Sequence[Path], answer_bytes: int, connections: int, bench: Bench, folder: Path) -> TcpFloor:
    """echo.c on the server's core, asked by the same client with the same requests, answering with as many bytes."""
    command = ["taskset", "-c", str(bench.cores.server), str(program("echo")), str(answer_bytes)]
    shots: list[dict[int, tree.ProcessCpu]] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as echo:
        try:
            assert echo.stdout is not None
            port = int(echo.stdout.readline())
            load = Load(port, connections, bench.warm_s, bench.run_s, requests, bench.cores.client)
            found = drive(load, folder, lambda besides: shots.append(tree.cpu(besides)))
        finally:
            echo.kill()
    if found.failures:
        raise RuntimeError(f"the echo failed {found.failures} times: {found.first_failure}")
    used_s = sum(
        sign * each.user_s + sign * each.system_s
        for sign, shot in zip((-1, 1), shots, strict=True)
        for each in shot.values()
    )
    return TcpFloor(used_s * 1e6 / found.requests, found.p50_us / 1e3, found.requests / found.elapsed_s)


def copy_us(size_bytes: int, core: int) -> float:
    """One memcpy between memory that is mapped and was used before."""
    usual = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        source, target = _pages(size_bytes), _pages(size_bytes)
        many = max(1, 1_000_000 // size_bytes)  # of small ones, as many as the clock can see
        return min(_time_us(source, target, many) for _ in range(COPY_TIMES))
    finally:
        os.sched_setaffinity(0, usual)


def _pages(size_bytes: int) -> Bytes:
    """Whole pages, as slots are: between others a copy may be several times as slow."""
    found = np.frombuffer(mmap.mmap(-1, size_bytes), np.uint8)
    found[:] = 1
    return found


def _time_us(source: Bytes, target: Bytes, times: int) -> float:
    begin = time.perf_counter()
    for _ in range(times):
        np.copyto(target, source)
    return (time.perf_counter() - begin) * 1e6 / times


def link(name: str, records: int, run_s: float, core: int) -> LinkResult:
    """links.py on the server's core."""
    command = ["taskset", "-c", str(core), sys.executable, str(HERE / "links.py"), name, str(records), str(run_s)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=run_s + LINK_TIMEOUT_S)
    if done.returncode:
        raise RuntimeError(f"links.py {name} {records}: {done.stderr.strip()[-300:]}")
    return LinkResult(**json.loads(done.stdout))
