"""Faults for demo.py: signals a worker while a client keeps calling another model."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import dataclass, field

from served import Server

from client import Array, Client, ServerError, labels

RECOVERY_LIMIT_S = 60.0


@dataclass
class BystanderClient:
    """Calls one model in a thread during the block, and records failures and pauses."""

    address: str
    model: str
    sample: Array
    sent: int = 0
    failed: int = 0
    worst_pause_ms: float = 0.0
    reasons: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._call)
        self._expected: list[int] | None = None

    def __enter__(self) -> BystanderClient:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _call(self) -> None:
        client, last = Client(self.address), time.perf_counter()
        while not self._stop.is_set():
            self.sent += 1
            try:
                found = labels(client.infer(self.model, {"x": self.sample})).tolist()
                self._expected = self._expected or found
                if found != self._expected:
                    raise ValueError(f"answered {found} instead of {self._expected}")
            except Exception as error:  # noqa: BLE001 - any error counts as a failure
                self.failed += 1
                self.reasons.append(f"{type(error).__name__}: {error}")
                client.close()
            now = time.perf_counter()
            self.worst_pause_ms = max(self.worst_pause_ms, (now - last) * 1000)
            last = now
        client.close()


@dataclass
class Recovery:
    """The recovery of a model: the signal, the errors of its callers, the next worker, the cause of the death."""

    model: str
    fault: str
    told: list[str]
    seconds: float
    pid: tuple[int, int]
    generation: tuple[int, int]
    cause: str


def signal_and_recover(server: Server, model: str, number: signal.Signals, sample: Array) -> Recovery:
    """Send a signal to a model's worker, then call the model until it serves again."""
    before = server.worker(model)
    pidfd = os.pidfd_open(before["pid"])
    signal.pidfd_send_signal(pidfd, number)
    os.close(pidfd)
    began = time.monotonic()
    errors: list[str] = []
    client = Client(server.address)
    while time.monotonic() < began + RECOVERY_LIMIT_S:
        try:
            client.infer(model, {"x": sample})
            break
        except ServerError as error:
            errors.append(f"{error.status} {error.code} after {time.monotonic() - began:.2f} s")
            time.sleep(error.retry_after_s)  # as the server asked
    seconds = time.monotonic() - began
    client.close()
    after = server.worker(model)
    deaths = [each for each in server.ask("events", model=model)["events"] if each["event"] == "worker_exit"]
    return Recovery(
        model,
        number.name,
        errors,
        round(seconds, 3),
        (before["pid"], after["pid"]),
        (before["generation"], after["generation"]),
        " / ".join(each["text"] for each in deaths),
    )
