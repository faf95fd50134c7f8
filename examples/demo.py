"""Demonstration: serves real models, kills one worker, stops another, while a third model is not affected.

    make demo            or: python examples/demo.py [--json]

Trains a few models, serves them on free ports from a temporary folder, classifies held-out samples, then signals two
workers while a client keeps calling a third model. Afterwards nothing of the server may be left. Exits with 1 if
anything was not as promised.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import make_models
import numpy as np
from harm import BystanderClient, Recovery, signal_and_recover
from leftovers import ResourceWatch
from served import Server

from client import Client, labels

FAULTS = (("digits_mlp", signal.SIGKILL), ("digits_forest", signal.SIGSTOP))
UNAFFECTED = "digits_linear"
MIN_ACCURACY = 0.9

PrintLine = Callable[[str], object]


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


@dataclass
class DemoResult:
    """Results so far; the names of the fields are the keys with `--json`."""

    models: list[str] = field(default_factory=list)
    ready_s: float = 0.0
    accuracy: dict[str, float] = field(default_factory=dict)
    comebacks: list[Recovery] = field(default_factory=list)
    requests: int = 0
    failed: int = 0
    reasons: list[str] = field(default_factory=list)
    worst_pause_ms: float = 0.0
    brains: int = 1
    exit_code: int | None = None
    stop_s: float = 0.0
    processes: int = 0
    left: dict[str, list[str]] = field(default_factory=dict)

    def broken(self) -> list[str]:
        """Each result that is not as promised."""
        words = [
            f"{model} is right in only {share:.1%}" for model, share in self.accuracy.items() if share < MIN_ACCURACY
        ]
        for each in self.comebacks:
            if each.pid[0] == each.pid[1] or each.generation[0] >= each.generation[1]:
                words.append(f"{each.model} did not serve again")
            if not each.cause:
                words.append(f"the cause of the death of {each.model} is unknown")
        if self.failed or not self.requests:
            words.append(f"{self.failed} of {self.requests} requests to {UNAFFECTED} failed: {self.reasons[:3]}")
        if self.brains != 1:
            words.append(f"the controller was restarted {self.brains - 1} times")
        if self.exit_code != 0:
            words.append(f"the server ended with {self.exit_code}")
        return words + [f"{kind} are left: {', '.join(names)}" for kind, names in self.left.items() if names]


def run(folder: Path, say: PrintLine) -> DemoResult:
    outcome = DemoResult()
    began = time.monotonic()
    outcome.models = make_models.make(folder)
    say(f"made      {len(outcome.models)} models in {time.monotonic() - began:.1f} s: {', '.join(outcome.models)}")
    began = time.monotonic()
    server = Server(folder, folder / "models")
    watch = ResourceWatch(server.process.pid)
    try:
        server.wait_ready()
        outcome.ready_s = round(time.monotonic() - began, 2)
        watch.update()
        say(f"served    on {server.address}, ready after {outcome.ready_s:.1f} s, {watch.seen} processes")
        classify(outcome, server, folder / "held_out.npz", say)
        fail_two(outcome, server, watch, folder / "held_out.npz", say)
        stop(outcome, server, watch, say)
    finally:
        server.close()
    if outcome.broken():
        print(server.log(), file=sys.stderr)
    return outcome


def classify(outcome: DemoResult, server: Server, held_out: Path, say: PrintLine) -> None:
    """Measure every model's accuracy on held-out samples."""
    outcome.accuracy = accuracies(server.address, outcome.models, held_out)
    for model, share in outcome.accuracy.items():
        say(f"          {model:<20} {share:6.1%} of the held-out digits right")


def fail_two(outcome: DemoResult, server: Server, watch: ResourceWatch, held_out: Path, say: PrintLine) -> None:
    """Kill one worker, stop another, while a client keeps calling a third model."""
    with np.load(held_out) as saved:
        sample = saved["x"][:4]
    say(f"faults    while a client keeps calling {UNAFFECTED}")
    with BystanderClient(server.address, UNAFFECTED, sample) as bystander:
        for model, number in FAULTS:
            recovery = signal_and_recover(server, model, number, sample)
            watch.update()
            outcome.comebacks.append(recovery)
            say(
                f"          {recovery.fault} to {model}: served again after {recovery.seconds:.2f} s, "
                f"pid {' → '.join(map(str, recovery.pid))}, generation {' → '.join(map(str, recovery.generation))}"
            )
            say(f"            its client: {'; then '.join([*recovery.told, 'an answer'])}")
            say(f"            cause of death: {recovery.cause or 'unknown'}")
    outcome.requests, outcome.failed, outcome.reasons = bystander.sent, bystander.failed, bystander.reasons
    outcome.worst_pause_ms = round(bystander.worst_pause_ms, 1)
    say(
        f"          {UNAFFECTED}: {outcome.requests} requests sent, {outcome.failed} failed, "
        f"worst pause {outcome.worst_pause_ms} ms"
    )


def stop(outcome: DemoResult, server: Server, watch: ResourceWatch, say: PrintLine) -> None:
    """Stop the server by SIGTERM; find what is left of it."""
    status = server.ask("status")
    outcome.brains = status["brain"]["generation"]
    ports = [int(port) for each in status["addresses"].values() if (port := each.rpartition(":")[2]).isdigit()]
    began = time.monotonic()
    outcome.exit_code = server.stop()
    outcome.stop_s = round(time.monotonic() - began, 2)
    outcome.processes = watch.seen
    outcome.left = watch.left(server.runtime_dir, ports)
    say(f"stopped   by SIGTERM, exit {outcome.exit_code} after {outcome.stop_s:.1f} s")
    kinds = ", ".join(f"{len(names)} {kind}" for kind, names in outcome.left.items())
    say(f"left      of {watch.seen} processes and all they held: {kinds}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Serve models, signal two workers, show that a third model is not affected."
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    as_json = parser.parse_args().json
    with tempfile.TemporaryDirectory(prefix="mmsup_demo_") as folder:
        outcome = run(Path(folder), (lambda _: None) if as_json else lambda line: print(line, flush=True))
    broken = outcome.broken()
    if as_json:
        print(json.dumps({**asdict(outcome), "broken": broken, "ok": not broken}))
    for each in broken:
        print(f"BROKEN: {each}", file=sys.stderr)
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
