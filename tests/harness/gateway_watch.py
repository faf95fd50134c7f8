"""Measures what a flood costs a gateway: private memory, and how long a small request waits for its event loop.

Neither depends on the load of the machine: memory is counted without pages shared with workers, and time is the CPU
time that the whole gateway used between a small request and its answer.
"""

from __future__ import annotations

import socket
import threading
import time
from types import TracebackType

import psutil

from harness.server import EVENT_S, Server, eventually

PAUSE_S = 0.01
ENOUGH = 5
"""The least number of small requests."""
_PROBE = b"POST /v2/models/nobody/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}"


class GatewayWatch:
    """Samples until the end of the block."""

    def __init__(self, server: Server) -> None:
        (gateway,) = server.status()["gateways"]
        self.pid: int = gateway["pid"]
        self._process = psutil.Process(self.pid)
        self._address = server.address()
        self._stop = threading.Event()
        self._clock = ((~self.pid) << 3) | 2  # the kernel's number for the CPU clock of a process
        self.at_first_bytes = self.peak_bytes = self.own_bytes()
        self.waits_s: list[float] = []

    def own_bytes(self) -> int:
        """Private memory: RSS without shared pages."""
        memory = self._process.memory_info()
        return int(memory.rss - memory.shared)

    @property
    def growth_bytes(self) -> int:
        """The peak of private memory minus its first value."""
        return self.peak_bytes - self.at_first_bytes

    def wait_s(self, part: float) -> float:
        """A quantile of the waits in CPU seconds; 1 is the maximum."""
        ordered = sorted(self.waits_s)
        return ordered[min(int(part * len(ordered)), len(ordered) - 1)]

    def __enter__(self) -> GatewayWatch:
        self._thread = threading.Thread(target=self._run, name="watch")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            eventually(
                lambda: len(self.waits_s) >= ENOUGH or not self._thread.is_alive(), "small requests are answered"
            )
        self._stop.set()
        self._thread.join(EVENT_S)
        print(self)
        assert kind is not None or len(self.waits_s) >= ENOUGH, "a small request was not answered as it should"

    def __str__(self) -> str:
        waits = (
            " ".join(f"p{part * 100:g} {self.wait_s(part) * 1e3:.1f}" for part in (0.5, 0.99, 1))
            if self.waits_s
            else ""
        )
        return f"gateway: grew {self.growth_bytes / 2**20:.1f} MiB, small requests waited [ms of CPU] {waits}"

    def _run(self) -> None:
        with socket.create_connection(self._address, EVENT_S) as client:
            while not self._stop.wait(PAUSE_S):
                self.peak_bytes = max(self.peak_bytes, self.own_bytes())
                began = time.clock_gettime(self._clock)
                client.sendall(_PROBE)
                if not client.recv(4096).startswith(b"HTTP/1.1 404"):
                    return
                self.waits_s.append(time.clock_gettime(self._clock) - began)
