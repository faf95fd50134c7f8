"""Everything at once: real models served, one killed, one hung, a third that notices nothing; then nothing is left.

    make demo            or: python examples/demo.py [--json]

Makes a few models, serves them on free ports from a temporary folder, classifies samples that no model was trained
on, then hurts two workers while a client keeps calling a third. Ends with 1 if a promise was broken.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import make_models
import numpy as np
from client import Array, Client, Refused, labels
from leftovers import Watch

from mmsup.supervisor.client import ask

KILLED, HUNG, CALM = "digits_mlp", "digits_forest", "digits_linear"
START_S = 180.0
"""Far above any start: it fires only when something is broken."""
COMEBACK_S = 60.0
STOP_S = 60.0
LEAST_ACCURACY = 0.9


@dataclass
class Bystander:
    """A client that keeps calling one model in a thread of its own, until it is told to stop."""

    address: str
    sample: Array
    sent: int = 0
    failed: int = 0
    worst_pause_ms: float = 0.0
    reasons: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._call)
        self._expected: list[int] | None = None

    def __enter__(self) -> Bystander:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _call(self) -> None:
        client, last = Client(self.address), time.perf_counter()
        while not self._over.is_set():
            self.sent += 1
            try:
                found = labels(client.infer(CALM, {"x": self.sample})).tolist()
                self._expected = self._expected or found
                if found != self._expected:
                    raise ValueError(f"{found} came instead of {self._expected}")
            except Exception as error:  # whatever it is, it is what a client would have met
                self.failed += 1
                self.reasons.append(f"{type(error).__name__}: {error}")
                client.close()
            now = time.perf_counter()
            self.worst_pause_ms = max(self.worst_pause_ms, (now - last) * 1000)
            last = now
        client.close()


@dataclass
class Comeback:
    """One victim: what was done to it, what its own callers were told, how it came back, why it had died."""

    model: str
    fault: str
    told: list[str]
    seconds: float
    pid: tuple[int, int]
    generation: tuple[int, int]
    cause: str


class Server:
    """`mmsup serve` in a process of its own, with everything it writes in one temporary folder."""

    def __init__(self, folder: Path, repository: Path) -> None:
        self.runtime_dir = folder / "run"
        self._notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notified.bind(str(folder / "notify"))
        self._notified.settimeout(1.0)
        self._log = folder / "log"
        command = [sys.executable, "-m", "mmsup.supervisor.cli", "serve", "--http-port=0", "--metrics-port=0"]
        command += [
            f"--model-repository={repository}",
            f"--runtime-dir={self.runtime_dir}",
            f"--state-dir={folder / 'state'}",
        ]
        environ = {**os.environ, "NOTIFY_SOCKET": str(folder / "notify")}
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environ)

    def wait_ready(self) -> None:
        """Until the server says READY, as it would to systemd."""
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            try:
                if b"READY=1" in self._notified.recv(4096).splitlines():
                    return
            except TimeoutError:
                if self.process.poll() is not None:
                    break
        raise SystemExit(f"the server did not start:\n{self._log.read_text()}")

    def ask(self, verb: str, **arguments: object) -> Any:
        """What `mmsup ctl` would ask."""
        return ask(str(self.runtime_dir), verb, arguments)

    def worker(self, model: str) -> dict[str, Any]:
        """The one worker of a model, as `ctl status` has it."""
        models = {each["name"]: each for each in self.ask("status")["models"]}
        return models[model]["instances"][0]

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_S)

    def close(self) -> None:
        """Whatever happened: nothing goes on."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._notified.close()


def accuracies(address: str, models: list[str], held_out: Path) -> dict[str, float]:
    """The share of held-out samples that each model gets right, over HTTP, 50 at a time."""
    with np.load(held_out) as saved:
        x, y = saved["x"], saved["y"]
    client = Client(address)
    found: dict[str, float] = {}
    for model in models:
        answers = [labels(client.infer(model, {"x": x[at : at + 50]})) for at in range(0, len(x), 50)]
        found[model] = float((np.concatenate(answers) == y).mean())
    client.close()
    return found


def hurt(server: Server, address: str, model: str, number: signal.Signals, sample: Array) -> Comeback:
    """Send a signal to a model's worker, then be its caller until it serves again."""
    before = server.worker(model)
    pidfd = os.pidfd_open(before["pid"])
    signal.pidfd_send_signal(pidfd, number)
    os.close(pidfd)
    began = time.monotonic()
    told: list[str] = []
    client = Client(address)
    while time.monotonic() < began + COMEBACK_S:
        try:
            client.infer(model, {"x": sample})
            break
        except Refused as error:
            told.append(f"{error.status} {error.code} after {time.monotonic() - began:.2f} s")
            time.sleep(error.retry_after_s)  # as the server asked
    seconds = time.monotonic() - began
    client.close()
    after = server.worker(model)
    deaths = [each for each in server.ask("events", model=model)["events"] if each["event"] == "worker_exit"]
    return Comeback(
        model,
        number.name,
        told,
        round(seconds, 3),
        (before["pid"], after["pid"]),
        (before["generation"], after["generation"]),
        " / ".join(each["text"] for each in deaths),
    )


@dataclass
class Outcome:
    """All that was measured, and each promise that was broken."""

    ready_s: float
    accuracy: dict[str, float]
    comebacks: list[Comeback]
    requests: int
    failed: int
    worst_pause_ms: float
    reasons: list[str]
    exit_code: int
    stop_s: float
    processes: int
    left: dict[str, list[str]]

    def broken(self) -> list[str]:
        """In words."""
        words = [
            f"{model} is right in only {share:.1%}" for model, share in self.accuracy.items() if share < LEAST_ACCURACY
        ]
        for each in self.comebacks:
            if each.pid[0] == each.pid[1] or each.generation[0] >= each.generation[1]:
                words.append(f"{each.model} did not come back")
            if not each.cause:
                words.append(f"nobody knows why {each.model} had died")
        if self.failed or not self.requests:
            words.append(f"{self.failed} of {self.requests} requests to {CALM} failed: {self.reasons[:3]}")
        if self.exit_code != 0:
            words.append(f"the server ended with {self.exit_code}")
        return words + [f"{kind} are left: {names}" for kind, names in self.left.items() if names]


def run(folder: Path, say: Any) -> Outcome:  # print, or nothing
    """The whole demonstration."""
    began = time.monotonic()
    models = make_models.make(folder)
    say(f"made      {len(models)} models in {time.monotonic() - began:.1f} s: {', '.join(models)}")
    began = time.monotonic()
    server = Server(folder, folder / "models")
    watch = Watch(server.process.pid)
    try:
        server.wait_ready()
        ready_s = time.monotonic() - began
        addresses = server.ask("status")["addresses"]
        address = addresses["http"]
        watch.look()
        say(f"served    on {address}, ready after {ready_s:.1f} s, {watch.seen} processes")
        accuracy = accuracies(address, models, folder / "held_out.npz")
        for model, share in accuracy.items():
            say(f"          {model:<20} {share:6.1%} of the held-out digits right")
        with np.load(folder / "held_out.npz") as saved:
            sample = saved["x"][:4]
        say(f"faults    while a client keeps calling {CALM}")
        with Bystander(address, sample) as bystander:
            comebacks = []
            for model, number in ((KILLED, signal.SIGKILL), (HUNG, signal.SIGSTOP)):
                comebacks.append(hurt(server, address, model, number, sample))
                watch.look()
                say_comeback(comebacks[-1], say)
        say(
            f"          {CALM}: {bystander.sent} requests sent, {bystander.failed} failed, "
            f"worst pause {bystander.worst_pause_ms:.1f} ms"
        )
        began = time.monotonic()
        exit_code = server.stop()
        stop_s = time.monotonic() - began
        ports = [int(each.rpartition(":")[2]) for each in addresses.values() if each.rpartition(":")[2].isdigit()]
        left = watch.left(server.runtime_dir, ports)
    finally:
        server.close()
    kinds = ", ".join(f"{len(names)} {kind}" for kind, names in left.items())
    say(
        f"stopped   by SIGTERM, exit {exit_code} after {stop_s:.1f} s; of {watch.seen} processes and theirs are left: {kinds}"
    )
    return Outcome(
        ready_s=round(ready_s, 2),
        accuracy=accuracy,
        comebacks=comebacks,
        requests=bystander.sent,
        failed=bystander.failed,
        worst_pause_ms=round(bystander.worst_pause_ms, 2),
        reasons=bystander.reasons,
        exit_code=exit_code,
        stop_s=round(stop_s, 2),
        processes=watch.seen,
        left=left,
    )


def say_comeback(back: Comeback, say: Any) -> None:  # print, or nothing
    """Three lines."""
    say(
        f"          {back.fault} to {back.model}: served again after {back.seconds:.2f} s, "
        f"pid {back.pid[0]} → {back.pid[1]}, generation {back.generation[0]} → {back.generation[1]}"
    )
    say(
        f"            its caller: {'; then '.join([*back.told, 'an answer' if back.told else 'waited, and got its answer'])}"
    )
    say(f"            why it had died: {back.cause or 'unknown'}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Serve real models, hurt two of them, and show what the third notices."
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    as_json = parser.parse_args().json
    with tempfile.TemporaryDirectory(prefix="mmsup_demo_") as folder:
        outcome = run(Path(folder), (lambda _: None) if as_json else print)
    broken = outcome.broken()
    if as_json:
        print(json.dumps({**asdict(outcome), "broken": broken, "ok": not broken}))
    for each in broken:
        print(f"BROKEN: {each}", file=sys.stderr)
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
