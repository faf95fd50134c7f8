"""A bare link between two processes: ZeroMQ's DEALER and ROUTER over ipc, or a pair of SOCK_SEQPACKET sockets.

    taskset -c CORE python benchmarks/links.py zeromq|seqpacket RECORDS RUN_S

One frame of so many records goes there, comes back, and goes again; nobody looks at it. Prints what a record costs at
each end, and how long a frame is under way, as one JSON object. Both ends stay on the core on which this was started.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

import tree
import zmq

RECORD_BYTES = 160
"""About what 16 floats take with the names and numbers that travel with them."""
WARM_S = 0.3
_PR_SET_PDEATHSIG = 1
_MOST_BYTES = 1 << 16


@dataclass(frozen=True)
class LinkResult:
    """What was found. CPU in microseconds for each record, there and back."""

    name: str
    records: int
    near_us: float
    far_us: float
    round_trip_p50_us: float
    """Of a whole frame."""

    @property
    def cpu_us(self) -> float:
        """Of both ends."""
        return self.near_us + self.far_us


def zeromq(folder: str) -> tuple[Callable[[], None], Callable[[bytes], bytes]]:
    """The far end, to be run in a process of its own; the near end: a frame there and back."""
    address = f"ipc://{folder}/link"

    def far() -> None:
        router = zmq.Context().socket(zmq.ROUTER)
        router.bind(address)
        while True:
            router.send_multipart(router.recv_multipart())

    dealers: list[zmq.Socket[bytes]] = []  # made after the fork: a context does not survive one

    def near(frame: bytes) -> bytes:
        if not dealers:
            dealers.append(zmq.Context().socket(zmq.DEALER))
            dealers[0].connect(address)
        dealers[0].send(frame)
        return dealers[0].recv()

    return far, near


def seqpacket(_folder: str) -> tuple[Callable[[], None], Callable[[bytes], bytes]]:
    """The same, without anything between us and the kernel."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def far() -> None:
        while True:
            there.send(there.recv(_MOST_BYTES))

    def near(frame: bytes) -> bytes:
        here.send(frame)
        return here.recv(_MOST_BYTES)

    return far, near


KINDS = {"zeromq": zeromq, "seqpacket": seqpacket}


def fork(far: Callable[[], None]) -> int:
    """Run the far end in a child that ends with us."""
    if child := os.fork():
        return child
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    far()
    raise AssertionError("the far end serves until it is killed")


def repeat(ask: Callable[[], object], run_s: float) -> list[float]:
    """How long each took, in seconds."""
    taken = []
    end = time.perf_counter() + run_s
    while (begin := time.perf_counter()) < end:
        ask()
        taken.append(time.perf_counter() - begin)
    return taken


def measure(name: str, records: int, run_s: float) -> LinkResult:
    """One link with frames of one size."""
    with tempfile.TemporaryDirectory(prefix="mmsup_bench_") as folder:
        far, near = KINDS[name](folder)
        child = fork(far)
        try:
            ask = partial(near, bytes(RECORD_BYTES * records))
            repeat(ask, WARM_S)
            there, here = tree.cpu()[child], time.process_time()
            taken = repeat(ask, run_s)
            here, after = time.process_time() - here, tree.cpu()[child]
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    share = 1e6 / len(taken) / records
    far_s = after.user_s + after.system_s - there.user_s - there.system_s
    return LinkResult(name, records, here * share, far_s * share, statistics.median(taken) * 1e6)


if __name__ == "__main__":
    print(json.dumps(asdict(measure(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))))
    sys.stdout.flush()
    os._exit(0)  # ZeroMQ would wait for a peer that is gone
