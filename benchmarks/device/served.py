"""Measures a whole server on a GPU: images of 602,112 bytes to one model, while the worker of another one is killed."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from changing_request import ChangingRequest
from generator import Load, LoadResult, drive
from meanwhile import in_background
from places import cores
from safetensors.torch import save_file
from wire import v2_binary_request

from harness.server import Server, serving

HEADS = [
    "gateways",
    "clients",
    "beside",
    "requests/s",
    "p50, ms",
    "p99, ms",
    "max, ms",
    "failed",
    "kills of the other",
    "the client's core, %",
]
SHAPE = 3, 224, 224
BATCH = 16
MODULE = """
import torch


class Model(torch.nn.Sequential):
    def __init__(self):
        widths = 3, 32, 64, 128, 256
        layers = []
        for old, new in zip(widths, widths[1:]):
            layers += [torch.nn.Conv2d(old, new, 3, 2, 1), torch.nn.ReLU()]
        super().__init__(*layers, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(256, 1000))
"""
SETTINGS = f"""
device: cuda:0
trusted: true
max_batch_size: {BATCH}
inputs: [{{name: x, datatype: FP32, shape: [3, 224, 224]}}]
outputs: [{{name: y, datatype: FP32, shape: [1000]}}]
"""


def write_network(repository: Path, name: str) -> None:
    """A small convolutional network, its weights in safetensors."""
    folder = repository / name / "1"
    folder.mkdir(parents=True)
    space: dict[str, object] = {}
    exec(MODULE, space)  # noqa: S102 - our own text, the one that the worker imports
    save_file(space["Model"]().state_dict(), folder / "model.safetensors")  # type: ignore[operator] - a class
    (folder / "model.py").write_text(MODULE)
    (repository / name / "mmsup.yaml").write_text(SETTINGS)


@contextmanager
def kills(server: Server, name: str, count: list[int]) -> Iterator[None]:
    """Kill the worker whenever it serves."""

    def kill(stop: threading.Event) -> None:
        while not stop.wait(0.1):
            model = server.model(name)
            if model["state"] == "ready":
                os.kill(model["instances"][0]["pid"], signal.SIGKILL)
                count[0] += 1
                stop.wait(0.5)

    with in_background(kill):
        yield


def measure_clients(server: Server, folder: Path, clients: int, run_s: float) -> LoadResult:
    """What so many clients measure."""
    load = Load(server.address()[1], clients, 1.0, run_s, [folder / "request"], cores().client)
    found = drive(load, folder / f"samples{time.monotonic_ns()}", lambda _: None)
    if found.failures:
        print(f"{found.failures} failed: {found.first_failure}", file=sys.stderr)
    return found


def line(clients: int, beside: str, found: LoadResult, killed: int) -> list[str]:
    times = [f"{each / 1e3:.2f}" for each in (found.p50_us, found.p99_us, found.max_us)]
    rate = f"{found.requests / found.elapsed_s:,.0f}"
    return [str(clients), beside, rate, *times, str(found.failures), str(killed)]


def rows(run_s: float = 5.0) -> list[list[str]]:
    """One client, then enough for whole batches, then the same beside deaths."""
    found: list[list[str]] = []
    with tempfile.TemporaryDirectory(prefix="mmsup_bench_") as name:
        folder, repository = Path(name), Path(name) / "repository"
        for model in ("asked", "killed"):
            write_network(repository, model)
        x = np.random.default_rng(1).random((1, *SHAPE), np.float32)
        ChangingRequest.of(v2_binary_request("asked", x).encode(), x).write(folder / "request")
        with serving(repository, "--model-control-mode", "explicit", "--load-model", "*") as server:
            for clients in (1, 2 * BATCH):
                found.append(line(clients, "nothing", measure_clients(server, folder, clients, run_s), 0))
            count = [0]
            with kills(server, "killed", count):
                outcome = measure_clients(server, folder, 2 * BATCH, run_s)
            found.append(line(2 * BATCH, "deaths", outcome, count[0]))
            server.stop()
    return found


def measure_alone(run_s: float = 2.0) -> list[list[str]]:
    """The same network in a plain loop, with images copied from pinned memory: the upper bound of the device."""
    space: dict[str, object] = {}
    exec(MODULE, space)  # noqa: S102 - as above
    network = space["Model"]().cuda().eval()  # type: ignore[operator] - a class
    host = torch.rand(BATCH, *SHAPE, pin_memory=True)
    with torch.inference_mode():
        for _ in range(20):
            network(host.cuda(non_blocking=True)).cpu()
        began, batches = time.monotonic(), 0
        while time.monotonic() < began + run_s:
            network(host.cuda(non_blocking=True)).cpu()
            batches += 1
    rate = batches * BATCH / (time.monotonic() - began)
    return [["-", "a loop in one process, batches of 16", f"{rate:,.0f}", "", "", "", "", ""]]
